package daemon

import (
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/fixture"
	"hsm-signer/cmd/hsm-signer/internal/metrics"
	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/internal/must"
)

const kubeconfigOfNobody = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: x, context: {cluster: c}}]
current-context: x
`

// An address in use is a fault of the configuration, which is reported before the token, the
// journal or the API server is touched.
func TestAddressesInUse(t *testing.T) {
	dir := t.TempDir()
	ca := fixture.NewCA(t)
	must.OK(t, os.WriteFile(dir+"/pin", []byte("1234"), 0o600))
	must.OK(t, os.WriteFile(dir+"/kubeconfig", []byte(kubeconfigOfNobody), 0o600))
	must.OK(t,
		os.WriteFile(dir+"/ca.crt",
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate.Raw}), 0o600))
	settings := slices.Concat(config.ServiceSettings, config.TokenSettings, config.LogSettings)
	command := &cobra.Command{}
	config.AddFlags(command, settings)
	must.OK(t, command.ParseFlags([]string{
		"--signer-name=example.com/calico", "--pkcs11-module=/none.so", "--pkcs11-token-label=ca",
		"--ca-key-label=ca",
		"--pkcs11-pin-file=" + dir + "/pin", "--kubeconfig=" + dir +
			"/kubeconfig", "--ca-cert-file=" + dir + "/ca.crt",
		"--state-dir=" + dir + "/state", "--leader-elect=false",
		"--listen-address=" + fixture.Listen(t, "127.0.0.1:0").Addr().String(),
		"--status-address=" + fixture.Listen(t, "127.0.0.1:0").Addr().String(),
	}))
	c, faults := config.ReadProcess(command, settings)
	services := service.LoadAll(c, faults, nil)
	must.OK(t, faults.Err())
	d, err := New(c.Config, services, metrics.NewProcess(), hclog.NewNullLogger())
	must.OK(t, err)
	err = d.Run(t.Context())
	if err == nil || exit.Code(err) != exit.Config {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{
		"LISTEN_ADDRESS: " + c.ListenAddress + " is in use by another process",
		"STATUS_ADDRESS: " + c.StatusAddress + " is in use by another process",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	if _, err := os.Stat(dir + "/state"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the state directory was touched: %v", err)
	}
}
