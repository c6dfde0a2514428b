// Package debian knows RSA keys of Debian's faulty generator (CVE-2008-0166).
//
// Duty: tell whether a modulus is one of those that the openssl command of Debian and of what descends
// from it (OpenSSL 0.9.8c-1 to 0.9.8g-8, September 2006 to May 2008) could make: its random numbers
// depended on little more than the process id.
//
// Known are the keys of 2048 bits that "openssl genrsa" and "openssl req" made,
//   - in every process from 0 to 32767,
//   - on amd64,
//   - when the file ~/.rnd could not be read (noreadrnd). Debian 4.0, with 0.9.8c, took a file that was
//     not there for one that it could not read.
//
// Not known are keys of other sizes and of other machines (mips, ia64, s390 and so on), of higher process ids, those
// made with the option -rand, and those of programs that drew random numbers before or in other portions.
// ssh-keygen is such a program; its keys have the public exponent 35.
//
// Contract: [Weak] does no I/O, and looks into the lists where they lie in the program. It never
// fails to name a known key; a key that is none it names with a probability of less than 2^-48, as
// there are 32,768 fingerprints of 64 bits.
//
// The lists are made by generate.go with the package generator, and were compared with keys of the
// repositories HARICA-official/debian-weak-keys and badkeys/debianopenssl on GitHub.
package debian

import (
	"crypto/sha256"
	_ "embed" // the lists
	"math/big"
	"sort"
	"strings"
)

// Each list is the fingerprints of one variant's keys in ascending order, with nothing between them.
var (
	//go:embed rsa2048-amd64-noreadrnd.list
	amd64NoReadRnd string
)

var lists = []string{
	amd64NoReadRnd,
}

// FingerprintSize is how many bytes of a hash a list holds.
const FingerprintSize = 8

// Fingerprint is what a list holds of a modulus: the beginning of the SHA-256 of its bytes, the highest first.
func Fingerprint(modulus *big.Int) string {
	sum := sha256.Sum256(modulus.Bytes())
	return string(sum[:FingerprintSize])
}

// Weak tells whether a modulus is a known one of the faulty generator.
func Weak(modulus *big.Int) bool {
	wanted := Fingerprint(modulus)
	for _, list := range lists {
		if _, found := sort.Find(len(list)/FingerprintSize, func(i int) int {
			return strings.Compare(wanted, list[i*FingerprintSize:][:FingerprintSize])
		}); found {
			return true
		}
	}
	return false
}
