package daemon

import (
	"hsm-signer/issuer"
	"hsm-signer/issuer/journal"
)

// answers knows which answers to requests are on the disk.
type answers struct {
	issuer *issuer.Issuer
	dir    string // of the journal
}

// Delivered reports whether the journal has the certificate as published.
func (a answers) Delivered(uid string, chain []byte) (bool, error) {
	return a.issuer.Delivered(uid, chain)
}

// Refused returns those of the requests that are in the refusal log, and for which the journal has
// no certificate and expects none.
func (a answers) Refused(uids []string) (map[string]bool, error) {
	refused, err := journal.Logged(a.dir, journal.RefusalsLog, uids)
	if err != nil {
		return nil, err
	}
	for uid := range refused {
		if refused[uid], err = a.issuer.NeverIssued(uid); err != nil {
			return nil, err
		}
	}
	return refused, nil
}
