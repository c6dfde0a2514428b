// Package debian knows RSA keys of Debian's faulty generator (CVE-2008-0166).
//
// Duty: report whether a modulus is one of those that the openssl command of Debian and of what
// descends from it (OpenSSL 0.9.8c-1 to 0.9.8g-8, September 2006 to May 2008) could make: its
// random numbers depended on little more than the process id.
//
// Known are the keys of 2048 bits that "openssl genrsa" and "openssl req" made,
//   - in every process from 0 to 32767,
//   - on amd64 and i386,
//   - when the file ~/.rnd was there (rnd), could not be read (noreadrnd), or did not exist
//
// (nornd).
//
//	Debian 4.0, with 0.9.8c, took a missing file for one that it could not read.
//
// Not known are ECDSA keys; RSA keys of other sizes, of other machines (those of powerpc, hppa and
// sparc the generator can make), of higher process ids and of the option -rand; and those of
// programs that drew random numbers before, or in other portions. ssh-keygen is one of them, but
// its keys had the public exponent 35.
//
// Contract: [Weak] does no I/O, and looks into the lists where they lie in the program. It never
// fails to name a known key. It names another one with a probability of less than 2^-46: there are
// 196,608 fingerprints of 64 bits.
//
// The lists are made by generate.go with the package generator, and were compared with keys of the
// repository HARICA-official/debian-weak-keys on GitHub.
package debian

import (
	"crypto/sha256"
	_ "embed" // the lists
	"math/big"
	"sort"
	"strings"
)

var (
	//go:embed rsa2048-amd64-rnd.list
	amd64Rnd string
	//go:embed rsa2048-amd64-noreadrnd.list
	amd64NoReadRnd string
	//go:embed rsa2048-amd64-nornd.list
	amd64NoRnd string
	//go:embed rsa2048-i386-rnd.list
	i386Rnd string
	//go:embed rsa2048-i386-noreadrnd.list
	i386NoReadRnd string
	//go:embed rsa2048-i386-nornd.list
	i386NoRnd string
)

// Each list is the fingerprints of a variant's keys in ascending order, with nothing between them.
var lists = []struct{ variant, prints string }{
	{"amd64-rnd", amd64Rnd},
	{"amd64-noreadrnd", amd64NoReadRnd},
	{"amd64-nornd", amd64NoRnd},
	{"i386-rnd", i386Rnd},
	{"i386-noreadrnd", i386NoReadRnd},
	{"i386-nornd", i386NoRnd},
}

// FingerprintSize is the length of a fingerprint in bytes.
const FingerprintSize = 8

// Fingerprint is what a list holds of a modulus: the beginning of the SHA-256 of its bytes, of
// which the most significant one comes first and is not zero.
func Fingerprint(modulus *big.Int) string {
	sum := sha256.Sum256(modulus.Bytes())
	return string(sum[:FingerprintSize])
}

// Weak reports whether a modulus is a known one of the faulty generator.
func Weak(modulus *big.Int) bool {
	wanted := Fingerprint(modulus)
	for _, list := range lists {
		if holds(list.prints, wanted) {
			return true
		}
	}
	return false
}

func holds(prints, wanted string) bool {
	_, found := sort.Find(len(prints)/FingerprintSize, func(i int) int {
		return strings.Compare(wanted, prints[i*FingerprintSize:][:FingerprintSize])
	})
	return found
}
