package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"hsm-signer/integration/must"
)

// check says whether Calico names this signer and this CA, in a cluster that has Calico's kind.
func TestCheckReadsCalicosInstallation(t *testing.T) {
	requireCheck(t, nil, 0, "there is none in this cluster")
	apply(t, customKind("operator.tigera.io", "Installation", "Cluster"))
	client := shared.Cluster.Client().Discovery().RESTClient()
	must.Eventually(t, "the kind to be served", func(ctx context.Context) (bool, error) {
		err := client.Get().AbsPath("/apis/operator.tigera.io/v1/installations/default").Do(ctx).
			Error()
		return apierrors.IsNotFound(err) &&
			strings.Contains(err.Error(), "\"default\" not found"), nil
	})
	text := must.Get(os.ReadFile(ca.CertFile))(t)
	other, _, err := shared.CreateCA(t.Context(), "ecdsa-p521")
	must.OK(t, err)
	foreign := must.Get(os.ReadFile(other.CertFile))(t)
	for _, c := range []struct {
		spec  string
		code  int
		words string
	}{
		{"{}", 0, "so Calico sends no requests"},
		{management("example.com/calico", "ECDSAWithCurve256", "ECDSAWithSHA256",
			append(foreign, text...)), 0, "names the signer example.com/calico and the CA"},
		{management("example.com/calcio", "ECDSAWithCurve256", "ECDSAWithSHA256", text), 2,
			`signerName is "example.com/calcio"`},
		{management("example.com/calico", "ECDSAWithCurve256", "", text), 2,
			"Calico's pods fail before they send a request"},
		{management("example.com/calico", "RSAWithSize8192", "", text), 0,
			"keyAlgorithm is RSAWithSize8192: Calico's init containers have 10m of CPU and 90 " +
				"seconds, and in a trial 0 of 5"},
		{management("example.com/calico", "RSAWithSize4096", "", text), 0,
			"in a trial 3 of 5 finished in time"},
		{management("example.com/calico", "", "", foreign), 2,
			"caCert holds neither the certificate of the CA"},
		{management("example.com/calico", "", "", nil), 2, "caCert: there is no certificate"},
	} {
		must.OK(t, shared.Cluster.Apply(t.Context(), []byte("apiVersion: operator.tigera.io/v1\n"+
			"kind: Installation\nmetadata: {name: default}\nspec: "+c.spec+"\n")))
		requireCheck(t, nil, c.code, c.words)
	}
}

func management(signer, key, signature string, authority []byte) string {
	return fmt.Sprintf("{certificateManagement: {signerName: %q, keyAlgorithm: %q, "+
		"signatureAlgorithm: %q, caCert: %q}}",
		signer, key, signature, base64.StdEncoding.EncodeToString(authority))
}
