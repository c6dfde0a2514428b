package ceremony

import (
	"bytes"
	"fmt"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
)

// transcribe returns the transcript, for two people to sign. It does not include the PIN.
// Fingerprints are in the form of sha256sum.
func (d *ceremony) transcribe() []byte {
	var text bytes.Buffer
	origin := "was created in the token"
	if d.want.existingKey {
		origin = "was already in the token; another tool created it"
	}
	fmt.Fprintf(&text, `Transcript of a key ceremony

Started          %s (UTC)
Ended            %s (UTC)
hsm-signer       %s

The token, as it describes itself
%s
The key %s
  label          %s
  id             %x
  type           %s
  public key     %s
                 (SHA-256 of its SubjectPublicKeyInfo)

Its attributes, as the token reports them
%s
A test signature was made in the token, and verifies with the public key.

`, d.started.UTC().Format(time.DateTime), time.Now().UTC().Format(time.DateTime),
		buildinfo.Version(), tokenLines(d.token), origin, d.pair.ID.Label, d.pair.ID.ID,
		d.pair.Type, d.facts.PublicKey,
		attributeLines(d.attributes.Attributes)+attributeLines(d.pair.Uses))
	d.transcribeResult(&text)
	text.WriteString(`
We were present, and what we saw agrees with the above.

  Name       ______________________________    ______________________________

  Signature  ______________________________    ______________________________

  Date       ______________________________    ______________________________
`)
	return text.Bytes()
}

// transcribeResult writes what was signed: the request for the CA's certificate, or the
// certificate.
func (d *ceremony) transcribeResult(text *bytes.Buffer) {
	what, note := "Its certificate", ""
	if d.want.request {
		what, note = "The request for its certificate", ", as requested"
	}
	fmt.Fprintf(text, `%s, signed in the token
  file           %s
  SHA-256        %s
                 (of the DER)
  subject        %s
`, what, d.want.out, d.facts.SHA256, d.facts.Subject)
	if !d.want.request {
		fmt.Fprintf(text, `  serial number  %s
  valid from     %s
  valid until    %s
`, d.facts.Serial, d.facts.NotBefore.Format(time.RFC3339), d.facts.NotAfter.Format(time.RFC3339))
	}
	fmt.Fprintf(text, "  constraints    %s%s\n", d.facts.Constraints, note)
}
