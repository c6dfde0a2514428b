package witness

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"

	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
)

// A Signer signs a digest with the checkpoint key, as [hsm-signer/hsm.CheckpointKey] does.
type Signer interface {
	Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// A Key signs heads of the journal: the checkpoint key with its public half.
type Key struct {
	signer Signer
	public crypto.PublicKey
}

// NewKey returns the key whose public half is public.
func NewKey(signer Signer, public crypto.PublicKey) *Key { return &Key{signer, public} }

// sign signs a text.
func (k *Key) sign(ctx context.Context, text []byte) (x509.SignatureAlgorithm, []byte, error) {
	algorithm := issuer.DefaultAlgorithm(k.public)
	opts := issuer.SignerOpts(algorithm, k.public)
	if hash := opts.HashFunc(); hash != 0 { // Ed25519 signs the text itself
		h := hash.New()
		h.Write(text)
		text = h.Sum(nil)
	}
	signature, err := k.signer.Sign(ctx, text, opts)
	return algorithm, signature, err
}

// A signedHead is a head with a signature over [journal.WitnessText].
type signedHead struct {
	Head      string `json:"head"`
	Algorithm string `json:"algorithm"`
	Signature []byte `json:"signature"`
}

// verify returns an error if the key has not signed the head of the journal for witnesses.
func (s *signedHead) verify(public crypto.PublicKey, id journal.ID) error {
	head, err := journal.ParseHead(s.Head)
	if err != nil {
		return err
	}
	for _, algorithm := range []x509.SignatureAlgorithm{
		x509.SHA256WithRSA, x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
		x509.PureEd25519,
	} {
		if algorithm.String() == s.Algorithm {
			return (&x509.Certificate{PublicKey: public}).CheckSignature(algorithm,
				journal.WitnessText(id, head), s.Signature)
		}
	}
	return fmt.Errorf("%q is not an algorithm that checkpoints are signed with", s.Algorithm)
}
