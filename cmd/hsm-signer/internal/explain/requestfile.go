package explain

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
	certificatesv1 "k8s.io/api/certificates/v1"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"hsm-signer/kube/csr"
	"hsm-signer/kube/podcert"
	"hsm-signer/policy"
)

// maxFile is the size of the largest file that is read. The policy limits each request.
const maxFile = 32 << 20

// A fileRequest is one request in a file, or the error about it.
type fileRequest struct {
	name       string // metadata.name, empty if it has none
	submission policy.Submission
	err        error
}

// readRequestFile returns every request in the file: at least one, or an error.
func readRequestFile(path string) ([]fileRequest, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxFile:
		return nil, fmt.Errorf("the file has more than %d MiB: split it", maxFile>>20)
	}
	return readRequests(text)
}

// objectLine matches a line of an API object.
var objectLine = regexp.MustCompile(`(?m)^\s*[{"']*(kind|apiVersion)["']?\s*:`)

// readRequests reads objects of the API, in any number of documents and lists, or else the text
// as one PKCS#10 request.
func readRequests(text []byte) ([]fileRequest, error) {
	objects, err := readObjects(text)
	switch isPEM := bytes.Contains(text, []byte("-----BEGIN")); {
	case len(objects) > 0 && kindOf(objects[0]) != "":
	case len(objects) > 0 && objects[0][0] == '{' && !isPEM: // which has no kind: a mistake
	case err != nil && objectLine.Match(text) && !isPEM:
		return nil, err
	default:
		return []fileRequest{{submission: policy.Submission{PEM: pemOf(text)}}}, nil
	}
	var found []fileRequest
	for _, object := range objects {
		found = appendRequests(found, object, "")
	}
	if err != nil { // the documents before it are judged
		found = append(found, fileRequest{err: err})
	}
	return found, nil
}

// pemOf returns the text, in PEM if it is DER.
func pemOf(text []byte) []byte {
	const sequence = 0x30 // the first byte of PKCS#10 in DER
	if len(text) > 0 && text[0] == sequence && !bytes.Contains(text, []byte("-----BEGIN")) {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: text})
	}
	return text
}

// readObjects returns the documents of a YAML text, or the values of a JSON text, in JSON.
// Together with an error it returns those that come before the one that cannot be read.
func readObjects(text []byte) ([]json.RawMessage, error) {
	if values, ok := readJSONValues(text); ok {
		return values, nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var objects []json.RawMessage
	for n := 1; ; n++ {
		var document any
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		var object json.RawMessage
		if err == nil {
			object, err = json.Marshal(document)
		}
		if err != nil {
			return objects, fmt.Errorf("YAML document %d cannot be read: %w", n, err)
		}
		if document != nil { // an empty one, as before the first ---
			objects = append(objects, object)
		}
	}
}

// readJSONValues returns the values of a text that holds nothing but JSON, one after the other.
func readJSONValues(text []byte) (values []json.RawMessage, ok bool) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	for {
		var value json.RawMessage
		err := decoder.Decode(&value)
		if err != nil {
			return values, errors.Is(err, io.EOF) && len(values) > 0
		}
		values = append(values, value)
	}
}

// kindOf returns the kind of an object, or nothing if it has none.
func kindOf(object json.RawMessage) string {
	var meta struct {
		Kind string `json:"kind"`
	}
	_ = utiljson.Unmarshal(object, &meta) // what has no kind is no object
	return meta.Kind
}

const (
	requestKind = "CertificateSigningRequest"
	podKind     = "PodCertificateRequest"
	listSuffix  = "List"
)

// appendRequests appends the request that the object is, or each of a list. The API leaves out the
// kind of a list's items; they have the one that is given.
func appendRequests(found []fileRequest, object json.RawMessage, kind string) []fileRequest {
	if own := kindOf(object); own != "" {
		kind = own
	}
	itemKind, isList := strings.CutSuffix(kind, listSuffix)
	if !isList {
		return append(found, requestIn(object, kind))
	}
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	switch err := utiljson.Unmarshal(object, &list); {
	case err != nil:
		return append(found, fileRequest{err: fmt.Errorf("the %s cannot be read: %w", kind, err)})
	case len(list.Items) == 0:
		return append(found, fileRequest{err: fmt.Errorf("the %s has no items", kind)})
	}
	for _, item := range list.Items {
		found = appendRequests(found, item, itemKind)
	}
	return found
}

// requestIn reads a request from an object.
func requestIn(object json.RawMessage, kind string) fileRequest {
	switch kind {
	case requestKind:
	case podKind:
		name, submission, err := podcert.Submission(object)
		if err != nil {
			err = fmt.Errorf("the %s cannot be read: %w", podKind, err)
		}
		return fileRequest{name, submission, err}
	case "":
		kind = "an object without a kind"
		fallthrough
	default:
		return fileRequest{err: fmt.Errorf("is %s, not a %s or %s", kind, requestKind, podKind)}
	}
	var made certificatesv1.CertificateSigningRequest
	err := utiljson.Unmarshal(object, &made)
	switch {
	case err != nil:
		err = fmt.Errorf("the %s cannot be read: %w", requestKind, err)
	case len(made.Spec.Request) == 0:
		err = fmt.Errorf("the %s has no spec.request", requestKind)
	default:
		return fileRequest{name: made.Name, submission: csr.Submission(&made)}
	}
	return fileRequest{name: made.Name, err: err}
}
