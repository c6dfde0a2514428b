package legacyapi

import (
	"bytes"
	"encoding/json"
	"io"
)

// rewriter changes one JSON object in place.
type rewriter func(object map[string]any)

// rewritten is a stream of JSON objects that are rewritten as they are read: the single object of
// an answer, or the events of a watch.
type rewritten struct {
	io.Closer
	decoder *json.Decoder
	rewrite rewriter
	ready   bytes.Buffer
}

func newRewritten(body io.ReadCloser, rewrite rewriter) *rewritten {
	decoder := json.NewDecoder(body)
	decoder.UseNumber()
	return &rewritten{Closer: body, decoder: decoder, rewrite: rewrite}
}

// Read returns the bytes of one object before it waits for the next.
func (s *rewritten) Read(p []byte) (int, error) {
	if s.ready.Len() == 0 {
		object := map[string]any{}
		if err := s.decoder.Decode(&object); err != nil {
			return 0, err
		}
		s.rewrite(object)
		if err := json.NewEncoder(&s.ready).Encode(object); err != nil {
			return 0, err
		}
	}
	return s.ready.Read(p)
}
