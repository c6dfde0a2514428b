package pkcs10

import (
	"crypto/rsa"
	"math/big"

	"github.com/titanous/rocacheck"

	"hsm-signer/policy/pkcs10/debian"
)

// weakness says how the private half of an RSA key of an allowed size can be found from its public
// half, or nothing. The checks are those of the CA/Browser Forum's Baseline Requirements, section
// 6.1.1.3, and a prime modulus. Of the keys of Debian's faulty generator, which that section wants refused
// up to 8192 bits, package debian knows most of those of 2048.
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

// Costly returns what is wrong with the request that takes long to find out; it is asked last, of a
// request that would be granted otherwise. For 8,192 bits it costs as much as a hundred signatures.
func (r *Request) Costly() (Fault, bool) {
	key, isRSA := r.PublicKey.(*rsa.PublicKey)
	if isRSA && key.N.ProbablyPrime(0) {
		return Fault{"request.publicKey", "is an RSA key whose private half can be found: its modulus is a prime; make a new key"}, true
	}
	return Fault{}, false
}

// smallPrimes is the product of all primes below 752.
var smallPrimes = func() *big.Int {
	product := big.NewInt(1)
	for n := int64(2); n < 752; n++ {
		if candidate := big.NewInt(n); candidate.ProbablyPrime(0) {
			product.Mul(product, candidate)
		}
	}
	return product
}()

func hasSmallFactor(n *big.Int) bool {
	return new(big.Int).GCD(nil, nil, n, smallPrimes).Cmp(big.NewInt(1)) != 0
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
