// Package generator makes again the RSA keys of Debian's faulty OpenSSL (CVE-2008-0166).
//
// From September 2006 to May 2008 the OpenSSL of Debian and of what descends from it (0.9.8c-1 to
// 0.9.8g-8) left out of its random numbers all that it was seeded with. What is left is the process
// id, how many bytes it was seeded with, and two things of the machine: its byte order and the size
// of a C long.
//
// Duty: find the primes that "openssl genrsa" and "openssl req" found in a process of a given id.
//
// Contract: what draws random bytes does so as OpenSSL did it, in its order, up to the witnesses of
// the test for primes; the arithmetic between is free. The names in the comments are OpenSSL's. No
// I/O; the same arguments give the same primes everywhere. It makes the lists of
// policy/pkcs10/debian and helps tests; the signer does not contain it.
package generator

import (
	"encoding/binary"
	"math/big"
)

// Processes is how many process ids Linux gave out: those below it. 0 was no program's; it is here
// because others list it.
const Processes = 1 << 15

// A Variant is what a faulty key depends on in addition to the process id and its own size.
type Variant struct {
	Name    string
	machine machine
	seed    func(*random)
}

// A machine is what of a computer comes into its random numbers.
type machine struct {
	name  string
	order binary.AppendByteOrder
	long  int // bytes of a C long and of a time_t
	stat  int // bytes of a struct stat
}

var machines = []machine{
	{"amd64", binary.LittleEndian, 8, 144},
	{"i386", binary.LittleEndian, 4, 88},
	{"powerpc", binary.BigEndian, 4, 88}, // hppa and sparc made the same keys
}

// randomFile is the size of a file ~/.rnd; a shorter one counts as much.
const randomFile = 1024

// seeds are what the openssl command does with the three states of the file ~/.rnd before it makes
// a key (app_RAND_load_file, RAND_load_file). With no file that it can read it asks the operating
// system at once, otherwise when it first draws.
var seeds = []struct {
	name string
	seed func(*random)
}{
	// unreadable; with 0.9.8c also missing
	{"noreadrnd", func(r *random) { r.add(r.machine.stat); r.poll() }},
	{"nornd", func(r *random) { r.poll() }}, // is missing
	{"rnd", func(r *random) { r.add(r.machine.stat); r.add(randomFile) }},
}

// Variants lists what can be made.
func Variants() []Variant {
	var all []Variant
	for _, m := range machines {
		for _, s := range seeds {
			all = append(all, Variant{m.name + "-" + s.name, m, s.seed})
		}
	}
	return all
}

// publicExponent is what openssl uses unless it is told to use 3.
const publicExponent = 65537

// Primes finds the two primes of a key (RSA_generate_key_ex). Its bits are a multiple of 128, and
// at least 1792.
func (v Variant) Primes(process, bits int) (p, q *big.Int) {
	r := &random{machine: v.machine, process: process}
	v.seed(r)
	s := newSearch(r, bits/2)
	return s.usablePrime(), s.usablePrime()
}
