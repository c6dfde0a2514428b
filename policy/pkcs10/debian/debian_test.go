package debian

import (
	"fmt"
	"math/big"
	"os"
	"strings"
	"testing"

	"hsm-signer/policy/pkcs10/debian/generator"
)

// made is the modulus that the generator makes.
func made(variant generator.Variant, process int) *big.Int {
	p, q := variant.Primes(process, 2048)
	return new(big.Int).Mul(p, q)
}

// The moduli of others are the proof that the generator is Debian's, and that the lists are those of its keys.
func TestModuliThatOthersPublished(t *testing.T) {
	text, err := os.ReadFile("testdata/moduli")
	if err != nil {
		t.Fatal(err)
	}
	for _, variant := range generator.Variants() {
		t.Run(variant.Name, func(t *testing.T) {
			count := 0
			for line := range strings.Lines(string(text)) {
				if !strings.HasPrefix(line, variant.Name+" ") {
					continue
				}
				count++
				var process int
				n := new(big.Int)
				if _, err := fmt.Sscanf(line, variant.Name+" %d %x", &process, n); err != nil {
					t.Fatalf("%v in %q", err, line)
				}
				if made(variant, process).Cmp(n) != 0 {
					t.Errorf("process %d: the generator makes another modulus", process)
				}
				if !Weak(n) {
					t.Errorf("process %d: its modulus is in no list", process)
				}
				if other := n.Add(n, big.NewInt(2)); Weak(other) {
					t.Errorf("process %d: the odd number above its modulus is called weak", process)
				}
			}
			if count == 0 {
				t.Error("there is no modulus to compare with")
			}
		})
	}
}

func TestListsHoldTheLastProcess(t *testing.T) {
	for _, variant := range generator.Variants() {
		if !Weak(made(variant, generator.Processes-1)) {
			t.Errorf("%s: its modulus is in no list", variant.Name)
		}
	}
}

func TestListsAreWholeAndInOrder(t *testing.T) {
	if len(lists) != len(generator.Variants()) {
		t.Errorf("%d lists of %d variants", len(lists), len(generator.Variants()))
	}
	for n, list := range lists {
		if len(list) != generator.Processes*FingerprintSize {
			t.Errorf("list %d has %d bytes; want %d for each of %d processes", n, len(list), FingerprintSize, generator.Processes)
		}
		for i := FingerprintSize; i < len(list); i += FingerprintSize {
			if list[i-FingerprintSize:i] >= list[i:i+FingerprintSize] {
				t.Errorf("list %d goes down, or stands still, at byte %d", n, i)
				break
			}
		}
	}
}
