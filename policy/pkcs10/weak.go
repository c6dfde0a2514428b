package pkcs10

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/hex"
	"math/big"
	"slices"
	"sync"

	"github.com/titanous/rocacheck"

	"hsm-signer/policy/pkcs10/debian"
)

// weakness says how the private half of an RSA key of an allowed size can be found from its public
// half, or nothing. The checks are those of the CA/Browser Forum's Baseline Requirements, section
// 6.1.1.3, and a prime modulus. Of the keys of Debian's faulty generator, which that section wants
// refused up to 8192 bits, package debian knows most of those of 2048.
func weakness(key *rsa.PublicKey) string {
	switch {
	case hasSmallFactor(key.N):
		return "its modulus has a small factor"
	case debian.Weak(key.N):
		return "it was made by Debian's faulty generator (CVE-2008-0166)"
	case rocacheck.IsWeak(key):
		return "it was made by a faulty chip (ROCA, CVE-2017-15361)"
	case hasCloseFactors(key.N):
		return "its two primes are too close to each other (Fermat's method finds them)"
	}
	return ""
}

// CheckKey makes the expensive checks of a request's key, and returns the fault if one fails. Call
// it last, for a request that would be granted otherwise: for 8,192 bits it costs as much as a
// hundred signatures.
func CheckKey(public crypto.PublicKey) (Fault, bool) {
	key, isRSA := public.(*rsa.PublicKey)
	if isRSA && key.N.ProbablyPrime(0) {
		return Fault{Field: "request.publicKey", Message: "is an RSA key whose private half " +
			"can be found: its modulus is a prime; make a new key"}, true
	}
	return Fault{}, false
}

// smallPrimes is the product of all primes below 752. It is made for the first RSA key: it takes 2
// ms and 0.7 MiB, which most processes do not need.
var smallPrimes = sync.OnceValue(func() *big.Int {
	product := big.NewInt(1)
	for n := int64(2); n < 752; n++ {
		if candidate := big.NewInt(n); candidate.ProbablyPrime(0) {
			product.Mul(product, candidate)
		}
	}
	return product
})

func hasSmallFactor(n *big.Int) bool {
	return new(big.Int).GCD(nil, nil, n, smallPrimes()).Cmp(big.NewInt(1)) != 0
}

// fermatRounds is what the Baseline Requirements ask for.
const fermatRounds = 100

// hasCloseFactors looks for n = a² − b² with a just above the square root of n.
func hasCloseFactors(n *big.Int) bool {
	one := big.NewInt(1)
	a := new(big.Int).Sqrt(n)
	if new(big.Int).Mul(a, a).Cmp(n) == 0 {
		return true // the same prime twice
	}
	square, rest, root := new(big.Int), new(big.Int), new(big.Int)
	for range fermatRounds {
		a.Add(a, one)
		rest.Sub(square.Mul(a, a), n)
		root.Sqrt(rest)
		if square.Mul(root, root).Cmp(rest) == 0 {
			return true
		}
	}
	return false
}

// smallOrder are the points of Ed25519 whose order divides 8, without the sign bit, also as
// encodings that are not canonical (the list of libsodium's ge25519_has_small_order). A signature
// by such a key proves nothing: whoever tries a few messages finds one for which it verifies.
var smallOrder = []string{
	"0000000000000000000000000000000000000000000000000000000000000000", // order 4
	"0100000000000000000000000000000000000000000000000000000000000000", // order 1
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", // order 8
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", // order 8
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p-1, order 2
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p, which is 0
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p+1, which is 1
}

func hasSmallOrder(key ed25519.PublicKey) bool {
	point := slices.Clone(key)
	point[len(point)-1] &= 0x7f
	return slices.Contains(smallOrder, hex.EncodeToString(point))
}
