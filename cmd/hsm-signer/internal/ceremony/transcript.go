package ceremony

import (
	"bytes"
	"fmt"
	"text/template"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
)

// transcript is for two people to sign. Fingerprints are in the form of sha256sum.
var transcript = template.Must(template.New("transcript").Parse(`Transcript of a key ceremony

Started          {{.Started}} (UTC)
Ended            {{.Ended}} (UTC)
hsm-signer       {{.Version}}

The token, as it describes itself
{{.Token}}
The key {{if .Existing}}was already in the token; another tool created it{{else}}was created in the token{{end}}
  label          {{.Label}}
  id             {{.ID}}
  type           {{.Type}}
  public key     {{.Made.PublicKey}}
                 (SHA-256 of its SubjectPublicKeyInfo)

Its attributes, as the token reports them
{{.Attributes}}
A test signature was made in the token, and verifies with the public key.

{{if .Request}}The request for its certificate{{else}}Its certificate{{end}}, signed in the token
  file           {{.File}}
  SHA-256        {{.Made.SHA256}}
                 (of the DER)
  subject        {{.Made.Subject}}
{{- if not .Request}}
  serial number  {{.Made.Serial}}
  valid from     {{.From}}
  valid until    {{.Until}}
{{- end}}
  constraints    {{.Made.Constraints}}{{if .Request}}, as requested{{end}}

We were present, and what we saw agrees with the above.

  Name       ______________________________    ______________________________

  Signature  ______________________________    ______________________________

  Date       ______________________________    ______________________________
`))

// transcribe fills in the transcript. Its data do not include the PIN.
func (d *ceremony) transcribe() []byte {
	var text bytes.Buffer
	// A buffer takes everything, and a test goes through each branch: there is no error.
	_ = transcript.Execute(&text, map[string]any{
		"Started": d.started.UTC().Format(time.DateTime),
		"Ended":   time.Now().UTC().Format(time.DateTime), "Version": buildinfo.Version(),
		"Token": tokenLines(d.token), "Existing": d.want.existingKey, "Request": d.want.request,
		"Label": d.pair.ID.Label, "ID": fmt.Sprintf("%x", d.pair.ID.ID), "Type": d.pair.Type,
		"Attributes": attributeLines(d.attributes.Attributes) + attributeLines(d.pair.Uses),
		"File":       d.want.out, "Made": d.facts,
		"From":  d.facts.NotBefore.Format(time.RFC3339),
		"Until": d.facts.NotAfter.Format(time.RFC3339),
	})
	return text.Bytes()
}
