package pkcs10test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"

	"hsm-signer/internal/must"
)

// PrimeModulus makes a request whose RSA-2048 key has a prime for its modulus, for one DNS name. It
// is signed correctly: the private exponent of such a key is easily found.
func PrimeModulus(t testing.TB) []byte {
	t.Helper()
	const e = 65537
	for {
		n := must.Value(rand.Prime(rand.Reader, 2048))(t)
		if d := new(big.Int).ModInverse(big.NewInt(e),
			new(big.Int).Sub(n, big.NewInt(1))); d != nil {
			return SignedByHand(t, n, e, d)
		}
	}
}

// SignedByHand makes a request for the DNS name a, of an RSA key with the modulus n and the
// exponents e and d, which crypto/rsa may not sign with.
func SignedByHand(t testing.TB, n *big.Int, e int, d *big.Int) []byte {
	t.Helper()
	san :=
		must.Value(
			asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 2,
				Bytes: []byte("a")}}))(t)
	names := must.Value(asn1.Marshal(struct {
		Type   asn1.ObjectIdentifier
		Values [][]pkix.Extension `asn1:"set"`
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14},
		[][]pkix.Extension{{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}}}}))(t)
	spki := must.Value(x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: e}))(t)
	tbs := must.Value(asn1.Marshal(struct {
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}{Subject: asn1.RawValue{FullBytes: []byte{0x30, 0}}, PublicKey: asn1.RawValue{FullBytes: spki},
		Attributes: []asn1.RawValue{{FullBytes: names}}}))(t)
	hash := crypto.SHA256.New()
	hash.Write(tbs)
	info := append([]byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03,
		0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}, hash.Sum(nil)...)
	size := (n.BitLen() + 7) / 8
	padded := append([]byte{0, 1}, make([]byte, size-3-len(info))...) // RFC 8017, section 9.2
	for i := 2; i < len(padded); i++ {
		padded[i] = 0xff
	}
	padded = append(append(padded, 0), info...)
	signature := new(big.Int).Exp(new(big.Int).SetBytes(padded), d, n).FillBytes(make([]byte, size))
	return Encode(must.Value(asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: tbs},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11},
			Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: signature, BitLength: 8 * size},
	}))(t))
}
