package hsm

import (
	"crypto"
	"fmt"

	"github.com/miekg/pkcs11"
)

// What PKCS#11 v3.0, section 2.3, adds for Ed25519; the binding is of v2.40.
const (
	ckkECEdwards           = 0x40
	ckmECEdwardsKeyPairGen = 0x1055
	ckmEdDSA               = 0x1057
)

// edwards25519 is the curve's name as CKA_EC_PARAMS: a PrintableString (PKCS#11 v3.0, section 2.3.10).
var edwards25519 = []byte("\x13\x0cedwards25519")

// ed25519Mechanism signs the message itself, not a digest of it (RFC 8032, section 5.1.6).
type ed25519Mechanism struct{}

func (ed25519Mechanism) prepare(message []byte, opts crypto.SignerOpts) ([]*pkcs11.Mechanism, []byte, error) {
	if hash := opts.HashFunc(); hash != 0 {
		return nil, nil, fmt.Errorf("Ed25519 signs messages, not digests by %s", hash)
	}
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(ckmEdDSA, nil)}, message, nil
}

func (ed25519Mechanism) finish(raw []byte) ([]byte, error) { return raw, nil }

// testText returns what a test signature is made over: a fixed text, or its digest where
// digests are signed.
func testText(opts crypto.SignerOpts) []byte {
	text := []byte("hsm-signer: test signature")
	if opts.HashFunc() == 0 {
		return text
	}
	hash := opts.HashFunc().New()
	hash.Write(text)
	return hash.Sum(nil)
}
