package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
)

// allowBundle gives hsm-signer the rights of deploy/components/trust-bundle for this signer.
func (s ownSigner) allowBundle(t *testing.T) {
	t.Helper()
	role := must.Get(os.ReadFile(filepath.Join("..", "..", "deploy", "components", "trust-bundle",
		"role.yaml")))(t)
	must.OK(t, shared.Cluster.Apply(t.Context(), []byte(strings.NewReplacer(
		"example.com/calico", s.name(), "example.com:calico", "example.com:"+string(s),
		"hsm-signer-trust-bundle", "hsm-signer-trust-bundle-"+string(s)).Replace(string(role)))))
}

// bundle is the name of the signer's ClusterTrustBundle.
func (s ownSigner) bundle() string { return "example.com:" + string(s) + ":hsm-signer" }

// requireBundle waits until the signer's ClusterTrustBundle holds exactly this.
func (s ownSigner) requireBundle(t *testing.T, want string) {
	t.Helper()
	must.Eventually(t, "the ClusterTrustBundle", func(ctx context.Context) (bool, error) {
		bundle, err := shared.Cluster.Client().CertificatesV1().ClusterTrustBundles().Get(ctx,
			s.bundle(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil && bundle.Spec.SignerName == s.name() && bundle.Spec.TrustBundle == want,
			err
	})
}

// hsm-signer creates the ClusterTrustBundle of its signer, restores it, and follows the file.
func TestTrustBundle(t *testing.T) {
	t.Parallel()
	s := newOwnSigner(t, "bundle")
	root := must.Get(os.ReadFile(ca.CertFile))(t)
	file := tempFile(t, "roots.pem", "# comment\n"+string(root))
	d := startReady(t, ca, s.env("TRUST_BUNDLE_FILE="+file)...)
	waitMetrics(t, d, "\nhsm_signer_trust_bundle_published 0\n") // not allowed yet
	if log := d.Log(); !strings.Contains(log, "the trust anchors could not be published") ||
		!strings.Contains(log, "forbidden") {
		t.Errorf("the log does not say why:\n%s", log)
	}
	s.allowBundle(t)
	s.requireBundle(t, string(root))
	waitMetrics(t, d, "\nhsm_signer_trust_bundle_published 1\n")

	bundles := shared.Cluster.Client().CertificatesV1().ClusterTrustBundles()
	bundle := must.Get(bundles.Get(t.Context(), s.bundle(), metav1.GetOptions{}))(t)
	other := otherRoot(t)
	bundle.Spec.TrustBundle = other
	must.Get(bundles.Update(t.Context(), bundle, metav1.UpdateOptions{}))(t)
	s.requireBundle(t, string(root))
	must.OK(t, bundles.Delete(t.Context(), s.bundle(), metav1.DeleteOptions{}))
	s.requireBundle(t, string(root))

	write(t, file, string(root)+other)
	s.requireBundle(t, string(root)+other)
	write(t, file, other) // clients would not trust the CA
	waitMetrics(t, d, "\nhsm_signer_trust_bundle_file_refused 1\n")
	s.requireBundle(t, string(root)+other)
}

// A file without the CA's root keeps hsm-signer from starting, and check names missing rights.
func TestTrustBundleIsChecked(t *testing.T) {
	t.Parallel()
	s := newOwnSigner(t, "bundle-checked")
	file := tempFile(t, "roots.pem", otherRoot(t))
	env := s.env("TRUST_BUNDLE_FILE=" + file)
	command(t, ca, env, "check").complains(t, 4, "TRUST_BUNDLE_FILE: ",
		"do not trust the CA ")
	write(t, file, string(must.Get(os.ReadFile(ca.CertFile))(t)))
	requireCheck(t, env, 2, "trust anchors", "attest signers "+s.name(),
		"get clustertrustbundles "+s.bundle(),
		"create clustertrustbundles", "deploy/components/trust-bundle")
}

// Where the API server has no ClusterTrustBundles, hsm-signer keeps a ConfigMap in each namespace,
// and leaves one alone that it did not create.
func TestTrustBundleInConfigMaps(t *testing.T) {
	t.Parallel()
	const name = "hsm-signer-trust-bundle"
	s := newOwnSigner(t, "configmaps")
	client := shared.Cluster.Client().CoreV1()
	ours, theirs := "trust-of-"+string(s), "foreign-of-"+string(s)
	roles := must.Get(os.ReadFile(filepath.Join("..", "..", "deploy", "components",
		"trust-bundle-configmaps", "roles.yaml")))(t)
	for _, namespace := range []string{ours, theirs} {
		must.Get(client.Namespaces().Create(t.Context(), &corev1.Namespace{
			ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}))(t)
		must.OK(t, shared.Cluster.Apply(t.Context(), []byte(strings.ReplaceAll(string(roles),
			"namespace: default", "namespace: "+namespace))))
	}
	foreign := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name},
		Data: map[string]string{"ca.crt": "mine"}}
	foreign = must.Get(client.ConfigMaps(theirs).Create(t.Context(), foreign,
		metav1.CreateOptions{}))(t)
	root := must.Get(os.ReadFile(ca.CertFile))(t)
	env := s.env("TRUST_BUNDLE_FILE="+ca.CertFile, "TRUST_BUNDLE_NAMESPACES="+ours+","+theirs)
	d := startReady(t, ca, env...)
	holds := func(ctx context.Context) (bool, error) {
		m, err := client.ConfigMaps(ours).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil && len(m.Data) == 1 && m.Data["ca.crt"] == string(root), err
	}
	must.Eventually(t, "the ConfigMap", holds)
	waitMetrics(t, d, "\nhsm_signer_trust_bundle_published 0\n") // one is foreign
	requireCheck(t, env, 2, "trust anchors", theirs+"/"+name,
		"was not created for this signer, so it stays as it is")

	m := must.Get(client.ConfigMaps(ours).Get(t.Context(), name, metav1.GetOptions{}))(t)
	m.Data["ca.crt"], m.Data["more"] = "changed", "more"
	must.Get(client.ConfigMaps(ours).Update(t.Context(), m, metav1.UpdateOptions{}))(t)
	must.Eventually(t, "the ConfigMap as it was", holds)
	same := must.Get(client.ConfigMaps(theirs).Get(t.Context(), name, metav1.GetOptions{}))(t)
	if same.ResourceVersion != foreign.ResourceVersion {
		t.Errorf("another's ConfigMap was changed: %v", same.Data)
	}
	must.OK(t, client.ConfigMaps(theirs).Delete(t.Context(), name, metav1.DeleteOptions{}))
	waitMetrics(t, d, "\nhsm_signer_trust_bundle_published 1\n")
}

// otherRoot returns the PEM of a CA that certified nothing here.
func otherRoot(t *testing.T) string {
	t.Helper()
	root := newOfflineRoot(t, "CA:TRUE")
	return string(must.Get(os.ReadFile(filepath.Join(root.dir, "root.crt")))(t))
}
