package policy

import (
	"slices"

	"hsm-signer/policy/pkcs10"
)

// A Usage is a key usage as Kubernetes spells it (CertificateSigningRequest, spec.usages).
type Usage string

// The usages that can be granted. The ones that make a CA ("cert sign", "crl sign") and the one
// that means everything ("any") are not among them.
const (
	DigitalSignature  Usage = "digital signature"
	ContentCommitment Usage = "content commitment"
	KeyEncipherment   Usage = "key encipherment"
	DataEncipherment  Usage = "data encipherment"
	KeyAgreement      Usage = "key agreement"
	ServerAuth        Usage = "server auth"
	ClientAuth        Usage = "client auth"
)

// Usages lists every Usage that a rule may allow.
func Usages() []Usage {
	return []Usage{DigitalSignature, ContentCommitment, KeyEncipherment, DataEncipherment,
		KeyAgreement, ServerAuth, ClientAuth}
}

// isKeyUsage reports whether a usage is one of the extension keyUsage, not of extKeyUsage.
func isKeyUsage(u Usage) bool { return u != ServerAuth && u != ClientAuth }

// fitUsages leaves out the usages that a key of this type cannot serve: only RSA keys encipher,
// only ECDSA keys agree (RFC 3279, section 2.3.1; RFC 5480, section 3; RFC 8410, section 5). Calico
// asks for both whatever the key is.
func fitUsages(asked []Usage, key pkcs10.KeyType) []Usage {
	fitting := make([]Usage, 0, len(asked))
	for _, usage := range asked {
		switch usage {
		case KeyEncipherment, DataEncipherment:
			if !key.IsRSA() {
				continue
			}
		case KeyAgreement:
			if !key.IsECDSA() {
				continue
			}
		}
		fitting = append(fitting, usage)
	}
	return fitting
}

// servedBy lists for an extended key usage the key usages of which it needs one. OpenSSL requires
// the same of a certificate for that purpose.
var servedBy = map[Usage][]Usage{
	ServerAuth: {DigitalSignature, KeyEncipherment, KeyAgreement},
	ClientAuth: {DigitalSignature, KeyAgreement},
}

// unserved lists the extended key usages that none of the key usages serves. The usages must be
// fitted to the key.
func unserved(usages []Usage) []Usage {
	var all []Usage
	for _, usage := range usages {
		needs, extended := servedBy[usage]
		serves := func(u Usage) bool { return slices.Contains(usages, u) }
		if extended && !slices.ContainsFunc(needs, serves) && !slices.Contains(all, usage) {
			all = append(all, usage)
		}
	}
	return all
}
