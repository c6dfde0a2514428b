package legacyapi

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

const (
	newVersion      = "certificates.k8s.io/v1"
	oldVersion      = "certificates.k8s.io/v1beta1"
	signerNameField = "spec.signerName"
)

// serveRequests serves certificate requests of v1beta1 from those of v1.
func (s *Server) serveRequests(w http.ResponseWriter, r *http.Request) {
	if refusal := s.refuse(r); refusal != nil {
		answer(w, refusal)
		return
	}
	if s.options.Before118 {
		dropUnknownParameters(r)
	}
	if err := s.convertBody(r); err != nil {
		answer(w, apierrors.NewBadRequest(err.Error()))
		return
	}
	r.URL.Path = newPath + strings.TrimPrefix(r.URL.Path, oldPath)
	s.forward(w, r, s.old)
}

// refuse returns the old server's error for a parameter that it does not support, or nil.
func (s *Server) refuse(r *http.Request) *apierrors.StatusError {
	query := r.URL.Query()
	if s.options.Before118 {
		selector, err := fields.ParseSelector(query.Get("fieldSelector"))
		if err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		for _, requirement := range selector.Requirements() {
			if requirement.Field == signerNameField {
				return apierrors.NewBadRequest("field label not supported: " + signerNameField)
			}
		}
		return nil
	}
	if isTrue(query.Get("watch")) && query.Get("resourceVersionMatch") != "" {
		invalid := apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName,
			Kind: "ListOptions"}, "", nil)
		invalid.ErrStatus.Message += "resourceVersionMatch: Forbidden: resourceVersionMatch is " +
			"forbidden for watch"
		return invalid
	}
	return nil
}

// dropUnknownParameters drops the parameters that a server before 1.18 ignores. It drops bookmarks
// too: a new server marks the end of the initial events with one even if the watch did not ask.
func dropUnknownParameters(r *http.Request) {
	query := r.URL.Query()
	query.Del("sendInitialEvents")
	query.Del("resourceVersionMatch")
	query.Del("allowWatchBookmarks")
	query.Del("fieldValidation")
	r.URL.RawQuery = query.Encode()
}

// convertBody converts the body of the request, if it has one, to JSON of v1.
func (s *Server) convertBody(r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	if err != nil || len(body) == 0 {
		return err
	}
	if r.Method != http.MethodPatch {
		if body, err = jsonOf(body); err != nil {
			return err
		}
		r.Header.Set("Content-Type", "application/json")
	}
	object := map[string]any{}
	// a JSON patch is an array and has no version
	if err := json.Unmarshal(body, &object); err == nil {
		s.convert(object)
		if body, err = json.Marshal(object); err != nil {
			return err
		}
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	return nil
}

// jsonOf returns the object as JSON, whatever its encoding.
func jsonOf(body []byte) ([]byte, error) {
	if json.Valid(body) {
		return body, nil
	}
	object, kind, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return nil, err
	}
	object.GetObjectKind().SetGroupVersionKind(*kind)
	return json.Marshal(object)
}

// convert changes an object of v1beta1 to v1.
func (s *Server) convert(object map[string]any) {
	if object["apiVersion"] == oldVersion {
		object["apiVersion"] = newVersion
	}
	if object["kind"] != "CertificateSigningRequest" {
		return
	}
	if name, _, _ := unstructured.NestedString(object, "spec", "signerName"); name == "" &&
		s.options.Before118 {
		// An error means that there is no spec, and so nothing to name.
		_ = unstructured.SetNestedField(object, s.options.SignerName, "spec", "signerName")
	}
	conditions, _, _ := unstructured.NestedSlice(object, "status", "conditions")
	for _, condition := range conditions {
		if condition, ok := condition.(map[string]any); ok &&
			(condition["status"] == nil || condition["status"] == "") {
			condition["status"] = string(metav1.ConditionTrue)
		}
	}
	if len(conditions) > 0 {
		// where they were found
		_ = unstructured.SetNestedSlice(object, conditions, "status", "conditions")
	}
}

// old changes an object of v1 to v1beta1: a request, a list of requests, or the event of a watch.
// Other objects, such as a Status, stay unchanged.
func (s *Server) old(object map[string]any) {
	if inner, ok := object["object"].(map[string]any); ok {
		s.old(inner)
		return
	}
	if object["apiVersion"] == newVersion {
		object["apiVersion"] = oldVersion
	}
	if items, ok := object["items"].([]any); ok {
		for _, item := range items {
			if item, ok := item.(map[string]any); ok {
				s.old(item)
			}
		}
	}
	if s.options.Before118 {
		unstructured.RemoveNestedField(object, "spec", "signerName")
	}
}

func answer(w http.ResponseWriter, err *apierrors.StatusError) {
	status := err.Status()
	status.Kind, status.APIVersion = "Status", "v1"
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(status.Code))
	_ = json.NewEncoder(w).Encode(status) // an error means that the client has gone
}

func isTrue(parameter string) bool { return parameter == "true" || parameter == "1" }

// within reports whether path is root or below it.
func within(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }
