package debian

import (
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"

	"hsm-signer/internal/must"
	"hsm-signer/policy/pkcs10/internal/generator"
)

// made is the modulus that the generator makes.
func made(variant generator.Variant, process, bits int) *big.Int {
	p, q := variant.Primes(process, bits)
	return new(big.Int).Mul(p, q)
}

// A published modulus is one that others found with the faulty OpenSSL itself.
type published struct {
	process int
	modulus *big.Int
}

// readPublished reads what others published of a variant.
func readPublished(t *testing.T, variant string) []published {
	t.Helper()
	text, err := os.ReadFile("testdata/moduli")
	must.OK(t, err)
	var all []published
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, variant+" "); ok {
			p := published{modulus: new(big.Int)}
			if _, err := fmt.Sscanf(rest, "%d %x", &p.process, p.modulus); err != nil {
				t.Fatalf("%v in %q", err, line)
			}
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		t.Fatalf("nothing is published of %s", variant)
	}
	return all
}

func TestGeneratorMakesWhatOthersPublished(t *testing.T) {
	for _, variant := range generator.Variants() {
		for _, p := range readPublished(t, variant.Name) {
			if made(variant, p.process, p.modulus.BitLen()).Cmp(p.modulus) != 0 {
				t.Errorf("%s, process %d: the generator makes another modulus", variant.Name,
					p.process)
			}
		}
	}
}

func TestWeakKnowsWhatOthersPublished(t *testing.T) {
	for _, list := range lists {
		for _, p := range readPublished(t, list.variant) {
			if p.modulus.BitLen() != 2048 {
				continue
			}
			if !Weak(p.modulus) {
				t.Errorf("%s, process %d: not known", list.variant, p.process)
			}
			if other := p.modulus.Add(p.modulus, big.NewInt(2)); Weak(other) {
				t.Errorf("%s, process %d: the odd number above the modulus is called weak",
					list.variant, p.process)
			}
		}
	}
}

// Each list is of the variant that it is said to be, up to its last process.
func TestListsHoldWhatTheGeneratorMakes(t *testing.T) {
	variants := generator.Variants()
	for _, list := range lists {
		variant := variants[slices.IndexFunc(variants, func(v generator.Variant) bool {
			return v.Name == list.variant
		})]
		for _, process := range []int{12345, generator.Processes - 1} {
			if !holds(list.prints, Fingerprint(made(variant, process, 2048))) {
				t.Errorf("%s: process %d is missing", list.variant, process)
			}
		}
	}
}

func TestListsAreWholeAndInOrder(t *testing.T) {
	for _, list := range lists {
		if len(list.prints) != generator.Processes*FingerprintSize {
			t.Errorf("%s has %d bytes; want %d for each of %d processes", list.variant,
				len(list.prints), FingerprintSize, generator.Processes)
		}
		for i := FingerprintSize; i < len(list.prints); i += FingerprintSize {
			if list.prints[i-FingerprintSize:i] >= list.prints[i:][:FingerprintSize] {
				t.Errorf("%s: the fingerprint at byte %d is not above the one before",
					list.variant, i)
				break
			}
		}
	}
}
