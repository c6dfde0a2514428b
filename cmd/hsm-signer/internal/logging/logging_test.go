package logging

import (
	"bytes"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"k8s.io/klog/v2"
)

// What client-go writes through klog comes through the one logger.
func TestKlogComesThroughTheLogger(t *testing.T) {
	var log bytes.Buffer
	New(hclog.Info, "json", &log)
	t.Cleanup(klog.ClearLogger)
	klog.Background().Info("said by client-go", "reflector", "r")
	klog.Background().V(5).Info("whispered by client-go")
	if text := log.String(); !strings.Contains(text, `"@message":"said by client-go"`) ||
		!strings.Contains(text, `"reflector":"r"`) || strings.Contains(text, "whispered") {
		t.Error(text)
	}
}
