package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"hsm-signer/internal/must"
)

// What needs a token is tested with tokens, in the module "integration".

func TestPINDoesNotShowItself(t *testing.T) {
	config := struct {
		Config Config
		Fault  any
	}{Config{PIN: PIN("canary-4711").Fixed()}, fault{Refused: PIN("canary-4711").Fixed()}}
	for _, format := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x"} {
		if text := fmt.Sprintf(format, config); strings.Contains(text, "canary") {
			t.Errorf("%s shows the PIN: %s", format, text)
		}
	}
}

// RSA signs what crypto/rsa would: a signature over our DigestInfo with the bare key operation
// verifies.
func TestDigestInfoIsPKCS1(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must.OK(t, err)
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		digest := bytes.Repeat([]byte{7}, hash.Size())
		request, err := rsaMechanism{&key.PublicKey}.prepare(digest, hash)
		must.OK(t, err)
		signature, err := rsa.SignPKCS1v15(nil, key, crypto.Hash(0), request.Input)
		must.OK(t, err)
		if err := rsa.VerifyPKCS1v15(&key.PublicKey, hash, digest, signature); err != nil {
			t.Errorf("%s: %v", hash, err)
		}
	}
	if _, err := (rsaMechanism{&key.PublicKey}).prepare(make([]byte, 20),
		crypto.SHA1); err == nil {
		t.Error("SHA-1 is signed")
	}
}

func TestECDSADigestIsTruncatedAndSignatureEncoded(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.OK(t, err)
	m := ecdsaMechanism{&key.PublicKey}
	digest := bytes.Repeat([]byte{9}, 64)
	request, err := m.prepare(digest, crypto.SHA512)
	if err != nil || len(request.Input) != 32 || request.Length != 64 {
		t.Fatalf("input of %d bytes, signature of %d: %v", len(request.Input), request.Length, err)
	}
	r, s, err := ecdsa.Sign(rand.Reader, key, request.Input)
	must.OK(t, err)
	raw := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	signature, err := m.finish(raw)
	if err != nil || !ecdsa.VerifyASN1(&key.PublicKey, digest, signature) {
		t.Errorf("the signature does not verify: %v", err)
	}
	form := (*formError)(nil)
	for name, wrong := range map[string][]byte{"short": raw[1:], "long": append(raw, 0),
		"DER": signature, "none": nil} {
		if _, err := m.finish(wrong); !errors.As(err, &form) || errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, length := range []int{96, 132, 256} { // those of other keys
		if _, err := m.finish(make([]byte, length)); !errors.Is(err, ErrKey) {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
	if big.NewInt(0).SetBytes(raw[:32]).Cmp(r) != 0 {
		t.Error("r is not the first half")
	}
}

// Whatever r and s are, the signature is what encoding/asn1 makes of them.
func TestSignaturesAreInDER(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		m := ecdsaMechanism{&ecdsa.PublicKey{Curve: curve}}
		most := new(big.Int).Sub(curve.Params().N, big.NewInt(1))
		for _, r := range []*big.Int{big.NewInt(0), big.NewInt(1), big.NewInt(0x7f),
			big.NewInt(0x80), big.NewInt(0x100), new(big.Int).Rsh(most, 1), most} {
			raw := append(r.FillBytes(make([]byte, m.size())),
				most.FillBytes(make([]byte, m.size()))...)
			got, err := m.finish(raw)
			want := der(t, struct{ R, S *big.Int }{r, most})
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, r is %x: %x, %v; want %x", curve.Params().Name, r, got, err, want)
			}
			if n := testing.AllocsPerRun(10, func() { _, _ = m.finish(raw) }); n > 2 {
				t.Errorf("%s: %.0f allocations", curve.Params().Name, n)
			}
		}
	}
}

func TestProofFailsClosed(t *testing.T) {
	good := KeyAttributes{}
	for _, a := range requiredAttributes {
		good.Attributes = append(good.Attributes,
			Attribute{Name: a.name, Want: a.want, Is: a.want, Known: true, Must: a.must})
	}
	if !good.Holds() || good.Doubtful() || (KeyAttributes{}).Holds() {
		t.Error("the good proof must hold, and the empty one not")
	}
	for i := range good.Attributes {
		for _, spoil := range []func(*Attribute){func(a *Attribute) { a.Is = !a.Is },
			func(a *Attribute) { a.Known = false }} {
			bad := KeyAttributes{Attributes: append([]Attribute(nil), good.Attributes...)}
			spoil(&bad.Attributes[i])
			if a := bad.Attributes[i]; bad.Holds() == a.Must || !bad.Doubtful() {
				t.Errorf("%s spoiled: holds is %t, and doubtful %t", a.Name, bad.Holds(),
					bad.Doubtful())
			}
		}
	}
}
