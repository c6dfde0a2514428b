package generator

import (
	"encoding/binary"
	"math/big"
	"math/bits"
	"slices"
	"sync"
)

// A search looks for primes of one size.
type search struct {
	random *random
	bytes  []byte   // what was drawn last; as long as a prime
	rests  []uint64 // of that by each of the small primes
}

func newSearch(r *random, bits int) *search {
	return &search{random: r, bytes: make([]byte, bits/8)}
}

// usablePrime is a prime by which the public exponent has an inverse.
func (s *search) usablePrime() *big.Int {
	for {
		p := s.prime()
		if rest := new(big.Int).Mod(p, big.NewInt(publicExponent)); rest.Cmp(big.NewInt(1)) != 0 {
			return p
		}
	}
}

// prime is BN_generate_prime_ex, with as many witnesses as BN_prime_checks_for_size asks for. What
// counts of a witness here is that it is drawn: the first one exposes a composite number, and so
// does Fermat's test with base 2, which decides. Of numbers of this size, drawn at random, either
// errs on less than one in 2^40 (Damgård, Landrock and Pomerance 1993; Pomerance 1981).
func (s *search) prime() *big.Int {
	witnesses := 3
	if len(s.bytes)*8 >= 1300 {
		witnesses = 2
	}
	for {
		n := s.candidate()
		s.drawBelow(n)
		if !passesFermat(n) {
			continue
		}
		for range witnesses - 1 {
			s.drawBelow(n)
		}
		return n
	}
}

func passesFermat(n *big.Int) bool {
	one := big.NewInt(1)
	power := new(big.Int).Sub(n, one)
	return power.Exp(big.NewInt(2), power, n).Cmp(one) == 0
}

// draw is BN_rand and BN_pseudo_rand, which first add the time.
func (s *search) draw() {
	s.random.add(s.random.machine.long)
	s.random.read(s.bytes)
}

// drawBelow is BN_pseudo_rand_range(n - 1), for an n whose highest two bits are set.
func (s *search) drawBelow(n *big.Int) {
	last := new(big.Int).Sub(n, big.NewInt(1))
	for drawn := last; drawn.Cmp(last) >= 0; {
		s.draw()
		drawn = new(big.Int).SetBytes(s.bytes)
	}
}

// candidate is probable_prime: from an odd number with its highest two bits set it goes up to the
// first that no small prime divides, and whose predecessor none does.
func (s *search) candidate() *big.Int {
	s.draw()
	s.bytes[0] |= 0xc0
	s.bytes[len(s.bytes)-1] |= 1
	s.divide()
	var up uint64
	for s.divided(up) {
		up += 2
	}
	n := new(big.Int).SetBytes(s.bytes)
	return n.Add(n, new(big.Int).SetUint64(up))
}

// divided reports whether a small prime divides the number up above the one that was drawn, or its
// predecessor.
func (s *search) divided(up uint64) bool {
	for i, p := range smallPrimes() {
		if (s.rests[i]+up)%p <= 1 {
			return true
		}
	}
	return false
}

// divide finds the rests of the number that was drawn by the small primes.
func (s *search) divide() {
	s.rests = s.rests[:0]
	for _, g := range groups() {
		var rest uint64
		for word := range slices.Chunk(s.bytes, 8) {
			_, rest = bits.Div64(rest, binary.BigEndian.Uint64(word), g.product)
		}
		for _, p := range g.primes {
			s.rests = append(s.rests, rest%p)
		}
	}
}

// smallPrimes are the odd ones among the first 2048 primes (crypto/bn/bn_prime.h).
var smallPrimes = sync.OnceValue(func() []uint64 {
	var all []uint64
	for n := uint64(3); len(all) < 2047; n += 2 {
		if new(big.Int).SetUint64(n).ProbablyPrime(0) {
			all = append(all, n)
		}
	}
	return all
})

// A group is small primes whose product fits in a word: a large number is divided by that, and only
// the rest by each of them.
type group struct {
	product uint64
	primes  []uint64
}

var groups = sync.OnceValue(func() []group {
	var all []group
	g := group{product: 1}
	for _, p := range smallPrimes() {
		if over, _ := bits.Mul64(g.product, p); over != 0 {
			all = append(all, g)
			g = group{product: 1}
		}
		g.product *= p
		g.primes = append(g.primes, p)
	}
	return append(all, g)
})
