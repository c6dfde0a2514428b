package check

import (
	"fmt"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/credential"
)

// checkCredential reports until when the credential for the API server is valid.
func checkCredential(all []credential.Expiry, now time.Time, report reporter) {
	const name = "credential"
	if len(all) == 0 {
		report(name, "the kubeconfig holds none: every request is anonymous", errWarning)
	}
	for _, e := range all {
		text := e.At(now)
		switch {
		case e.Expired(now):
			report(name, "", fmt.Errorf("%s; renew it: docs/credentials.md", text))
		case e.Soon(now):
			report(name, text+"; renew it: docs/credentials.md", errWarning)
		case e.Eternal():
			report(name, e.String()+": never expires, so whoever steals it can use it forever: "+
				"use a token that expires, as docs/credentials.md shows", errWarning)
		default:
			report(name, text, nil)
		}
	}
}
