package pkcs10

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
)

// ParseStub reads the request of a pod certificate in DER (PodCertificateRequest,
// spec.stubPKCS10Request). It must hold a key and the proof that the requester holds its private
// half, and nothing else: no subject, no attribute. The API server does not check that. ParseStub
// returns nil if it cannot be read as a request at all, and then with at least one fault.
func ParseStub(der []byte) (*Request, []Fault) {
	var found faults
	if len(der) > MaxPEM {
		found.add("request", "is too long: at most %d bytes are read", MaxPEM)
		return nil, found
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		found.add("request", "is not a PKCS#10 request: %s", Quote(err.Error()))
		return nil, found
	}
	r := newRequest(csr, &found)
	const more = "must be empty in the request of a pod certificate, which holds the key alone: " +
		"the signer takes all names from its policy"
	if _, empty := sequence(csr.RawSubject, 0, 0); !empty {
		found.add("request.subject", more)
	}
	if raw, ok := rawAttributes(csr.RawTBSCertificateRequest); !ok || len(raw) > 0 {
		found.add("request.attributes", more)
	}
	r.readKey(csr, &found)
	return r, found
}

// ParseKey reads the key of a pod certificate and the proof that the requester holds its private
// half: a signature of the pod's UID. Kubelets before 1.36 write them instead of a stub
// (PodCertificateRequest in v1beta1, spec.pkixPublicKey and spec.proofOfPossession). ParseKey
// returns nil if the key cannot be read at all, and then with at least one fault.
func ParseKey(der, proof []byte, podUID string) (*Request, []Fault) {
	var found faults
	if len(der)+len(proof) > MaxPEM {
		found.add("request", "is too long: at most %d bytes are read", MaxPEM)
		return nil, found
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		found.add("request.publicKey", "is not a public key: %s", Quote(err.Error()))
		return nil, found
	}
	r := &Request{SHA256: sha256.Sum256(der), PublicKey: public, KeySHA256: sha256.Sum256(der)}
	var ok bool
	if r.Key, ok = judgeKey(public, der, &found); ok && !proves(public, proof, []byte(podUID)) {
		found.add("request.signature", "does not verify with the key in the request")
	}
	return r, found
}

// proves reports whether the proof is the key's signature of the message, in the form that the API
// demands of each type of key.
func proves(public crypto.PublicKey, proof, message []byte) bool {
	digest := sha256.Sum256(message)
	switch key := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPSS(key, crypto.SHA256, digest[:], proof, nil) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest[:], proof)
	case ed25519.PublicKey:
		return ed25519.Verify(key, message, proof)
	}
	return false
}
