package ceremony

import (
	"context"
	"fmt"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/buildinfo"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/hsm"
)

// A session is what a ceremony did with a key in the token, for the transcript.
type session struct {
	pair       hsm.KeyPair
	token      hsm.Token
	attributes hsm.KeyAttributes
	started    time.Time
}

// open makes a test signature with the key, and notes the key's attributes. The caller closes the
// key that it returns.
func (s *session) open(ctx context.Context, c *config.Config) (*hsm.Key, error) {
	key, err := keyOf(c, s.pair)
	if err != nil {
		return nil, err
	}
	if s.attributes, err = key.Attributes(ctx); err != nil {
		key.Close()
		return nil, err
	}
	return key, nil
}

// transcript returns the transcript, for two people to sign. origin says what is known of the key,
// and result what was signed with it. It does not include the PIN. Fingerprints are in the form of
// sha256sum.
func (s *session) transcript(origin, publicKey, result string) []byte {
	return fmt.Appendf(nil, `Transcript of a key ceremony

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

%s
We were present, and what we saw agrees with the above.

  Name       ______________________________    ______________________________

  Signature  ______________________________    ______________________________

  Date       ______________________________    ______________________________
`, s.started.UTC().Format(time.DateTime), time.Now().UTC().Format(time.DateTime),
		buildinfo.Version(), tokenLines(s.token), origin, s.pair.ID.Label, s.pair.ID.ID,
		s.pair.Type, publicKey, s.keyLines(), result)
}

// keyLines returns the attributes and the uses of the key, one a line.
func (s *session) keyLines() string {
	return attributeLines(s.attributes.Attributes) + attributeLines(s.pair.Uses)
}

// resultLines describe what was signed, for the transcript: a certificate, or a request for one, of
// which neither the serial number nor the dates are known.
func (f certificateFacts) resultLines(what, file string, request bool) string {
	text := fmt.Sprintf(`%s, signed in the token
  file           %s
  SHA-256        %s
                 (of the DER)
  subject        %s
`, what, file, f.SHA256, f.Subject)
	if request {
		return text + fmt.Sprintf("  constraints    %s, as requested\n", f.Constraints)
	}
	return text + fmt.Sprintf(`  serial number  %s
  valid from     %s
  valid until    %s
  constraints    %s
`, f.Serial, f.NotBefore.Format(time.RFC3339), f.NotAfter.Format(time.RFC3339), f.Constraints)
}

// writeTranscript writes the transcript, unless there is no path.
func writeTranscript(path string, text []byte) error {
	if path == "" {
		return nil
	}
	if err := writeNew(path, text); err != nil {
		return fmt.Errorf("everything was created, but the transcript could not be written: %w; "+
			"save it by hand:\n%s", err, text)
	}
	return nil
}
