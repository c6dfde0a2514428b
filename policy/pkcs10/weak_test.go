package pkcs10

import (
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"strings"
	"testing"

	"hsm-signer/internal/must"
	"hsm-signer/policy/pkcs10/internal/generator"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// exponents are e, and the private exponent for a group of the given order.
func exponents(t *testing.T, order *big.Int) (e int, d *big.Int) {
	t.Helper()
	const f4 = 65537
	d = new(big.Int).ModInverse(big.NewInt(f4), order)
	if d == nil {
		t.Fatal("65537 has no inverse; run the test again")
	}
	return f4, d
}

func prime(t *testing.T, bits int) *big.Int {
	t.Helper()
	return must.Value(rand.Prime(rand.Reader, bits))(t)
}

// nextPrime is the first prime at or above n.
func nextPrime(n *big.Int) *big.Int {
	p := new(big.Int).SetBit(n, 0, 1)
	for !p.ProbablyPrime(20) {
		p.Add(p, big.NewInt(2))
	}
	return p
}

// weakKey is a modulus and the order of its group, by which one can sign with it.
type weakKey struct{ n, order *big.Int }

func product(p, q *big.Int) weakKey {
	one := big.NewInt(1)
	return weakKey{new(big.Int).Mul(p, q),
		new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))}
}

// Each weak key signs its request correctly, so that nothing but its weakness speaks against it.
func TestWeakRSAKeysAreRefused(t *testing.T) {
	p := prime(t, 1024)
	close64 := nextPrime(new(big.Int).Add(p, new(big.Int).Lsh(big.NewInt(1), 64)))
	whole := prime(t, 2048)
	large := new(big.Int).Lsh(big.NewInt(5), 2036) // times 743 it has 2048 bits
	for _, c := range []struct {
		name  string
		key   weakKey
		words string
	}{
		{"a prime twice",
			weakKey{new(big.Int).Mul(p, p),
				new(big.Int).Mul(p, new(big.Int).Sub(p, big.NewInt(1)))}, "too close"},
		{"close primes", product(p, close64), "too close"},
		{"a prime", weakKey{whole, new(big.Int).Sub(whole, big.NewInt(1))}, "is a prime"},
		{"a small factor", product(big.NewInt(743), nextPrime(large)), "small factor"},
		{"ROCA", product(rocaPrime(t), rocaPrime(t)), "ROCA"},
		{"Debian", product(generator.Variants()[0].Primes(4711, 2048)), "CVE-2008-0166"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, d := exponents(t, c.key.order)
			text := pkcs10test.SignedByHand(t, c.key.n, e, d)
			r, faults := Parse(text)
			if fault, weak := CheckKey(r.PublicKey); weak {
				faults = append(faults, fault)
			}
			if len(faults) != 1 || faults[0].Field != "request.publicKey" ||
				!strings.Contains(faults[0].Message, c.words) {
				t.Errorf("faults %v; want %q", faults, c.words)
			}
		})
	}
}

func TestGoodRSAKeyIsNotWeak(t *testing.T) {
	key := must.Value(rsa.GenerateKey(rand.Reader, 2048))(t)
	if why := weakness(&key.PublicKey); why != "" {
		t.Error(why)
	}
}

// rocaPrime is a prime of the faulty chips' form, k·M + (65537^a mod M) with M the product of the
// first 126 primes (The Return of Coppersmith's Attack, section 2).
func rocaPrime(t *testing.T) *big.Int {
	t.Helper()
	m, count := big.NewInt(1), 0
	for n := int64(2); count < 126; n++ {
		if candidate := big.NewInt(n); candidate.ProbablyPrime(0) {
			m.Mul(m, candidate)
			count++
		}
	}
	room := new(big.Int).Div(new(big.Int).Lsh(big.NewInt(1), 1024), m)
	quarter := new(big.Int).Rsh(room, 2)
	for {
		k := must.Value(rand.Int(rand.Reader, quarter))(t)
		// the top bits are set, so that the product of two has 2048
		k.Add(k, new(big.Int).Mul(quarter, big.NewInt(3)))
		a := must.Value(rand.Int(rand.Reader, m))(t)
		p := new(big.Int).Exp(big.NewInt(65537), a, m)
		p.Add(p, k.Mul(k, m))
		if p.BitLen() == 1024 && p.ProbablyPrime(20) {
			return p
		}
	}
}
