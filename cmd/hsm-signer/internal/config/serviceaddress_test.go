package config

import (
	"net/netip"
	"slices"
	"testing"
)

// What kubelet says of the Service is taken, and neither what a manifest may have replaced it by,
// nor what it says of another cluster than the one that is served.
func TestClusterIPOfTheAPIServerIsForbidden(t *testing.T) {
	clusterIP := []netip.Addr{netip.MustParseAddr("10.96.0.1")}
	for _, c := range []struct {
		address, host, kubeconfig string
		want                      []netip.Addr
	}{
		{"10.96.0.1", "10.96.0.1", "", clusterIP},
		{"10.96.0.1", "192.0.2.10", "", clusterIP}, // a control-plane node's
		{"::ffff:10.96.0.1", "", "", clusterIP},
		{"", "192.0.2.10", "", nil},
		{"10.96.0.1", "10.96.0.1", "/another/cluster", nil},
		{"kubernetes.default", "", "", nil},
	} {
		t.Setenv("KUBERNETES_PORT_443_TCP_ADDR", c.address)
		t.Setenv("KUBERNETES_SERVICE_HOST", c.host)
		if got := (&Config{InPod: true,
			Kubeconfig: c.kubeconfig}).serviceAddresses(); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if got := (&Config{}).serviceAddresses(); len(got) > 0 {
		t.Errorf("outside of a pod: %v", got)
	}
}
