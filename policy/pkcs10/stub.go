package pkcs10

import "crypto/x509"

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
