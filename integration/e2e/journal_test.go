package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/integration/must"
	"hsm-signer/integration/pkcs11shim"
	"hsm-signer/integration/testenv"
	"hsm-signer/issuer/journal"
)

// Each signature of the token is in the journal: certificates and test signatures.
func TestEachSignatureIsInTheJournal(t *testing.T) {
	s, env := behindShim(t)
	env = append(env, "STATE_DIR="+filepath.Join(t.TempDir(), "state"))
	for range 2 {
		d := startReady(t, ca, env...)
		for range 3 {
			requireIssues(t)
		}
		must.OK(t, d.Shutdown())
	}
	var summary journal.Summary
	text := command(t, ca, env, "audit", "verify", "--output", "json").prints(t, 0)
	must.OK(t, json.Unmarshal([]byte(text), &summary))
	calls := callsOf(t, s)
	if n := calls.Count(pkcs11shim.SignInit); n != summary.Counts.Signed+summary.Counts.Probes ||
		summary.Counts.Signed < 6 || summary.Counts.Probes < 2 {
		t.Errorf("the token signed %d times; the journal has %d certificates and %d test "+
			"signatures", n, summary.Counts.Signed, summary.Counts.Probes)
	}
}

// hsm-signer reports a certificate on one of its requests that it did not issue.
func TestForeignCertificateIsNoticed(t *testing.T) {
	d := startReady(t, ca, "APPROVE=false")
	before := foreign(t, d, -1) // other tests have left certificates of other CAs
	p := newPod(t, node)
	csr := submit(t, p, p.InitContainer(node))
	csr.Status.Certificate = must.Get(os.ReadFile(importKey(t, "foreign").CertFile))(t)
	must.Get(shared.Cluster.Requests().UpdateStatus(t.Context(), csr, metav1.UpdateOptions{}))(t)
	requireEvent(t, csr.Name, "ForeignCertificate")
	if after := foreign(t, d, before); after != before+1 {
		t.Errorf("%d certificates are foreign, and %d were before", after, before)
	}
	must.OK(t, shared.Cluster.Requests().Delete(t.Context(), csr.Name, metav1.DeleteOptions{}))
}

// foreign returns the number of foreign certificates in the metric, once it differs from the given
// one.
func foreign(t *testing.T, d *testenv.Daemon, other int) (n int) {
	t.Helper()
	said := regexp.MustCompile(`hsm_signer_certificates_in_cluster{origin="foreign"} (\d+)`)
	must.Eventually(t, "the metric of foreign certificates",
		func(ctx context.Context) (bool, error) {
			found := said.FindStringSubmatch(d.Metrics(ctx))
			if found == nil {
				return false, nil
			}
			var err error
			n, err = strconv.Atoi(found[1])
			return n != other, err
		})
	return n
}

// hsm-signer names a permission that is removed, and does not keep running into it. When it is back
// the waiting requests are issued.
func TestPermissionTakenAwayAndGivenBack(t *testing.T) {
	d := startReady(t, ca)
	roles := shared.Cluster.Client().RbacV1().ClusterRoles()
	whole := must.Get(roles.Get(t.Context(), "hsm-signer", metav1.GetOptions{}))(t)
	without := whole.DeepCopy()
	without.Rules = slices.DeleteFunc(without.Rules,
		func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, "pods") })
	must.Get(roles.Update(t.Context(), without, metav1.UpdateOptions{}))(t)
	back := func() {
		now := must.Get(roles.Get(context.Background(), "hsm-signer", metav1.GetOptions{}))(t)
		now.Rules = whole.Rules
		must.Get(roles.Update(context.Background(), now, metav1.UpdateOptions{}))(t)
	}
	t.Cleanup(back)
	must.OK(t, d.WaitNotReady(t.Context(), "[-] permissions: may not get pods; list pods"))
	p, asking := newRequester(t, node)
	submit(t, p, asking)
	back()
	requireAnswered(t, p, asking)
	must.OK(t, d.WaitReady(t.Context()))
}

// A separate key in the token signs the head of the journal periodically, and its checkpoints
// verify.
func TestCheckpointsAreSigned(t *testing.T) {
	dir := t.TempDir()
	public := filepath.Join(dir, "checkpoint.pub")
	env := []string{"STATE_DIR=" + filepath.Join(dir, "state"), "CHECKPOINT_KEY_LABEL=checkpoints"}
	command(t, ca, env, "ca", "create-checkpoint-key", "--out", public).prints(t, 0,
		"Key for checkpoints created")
	env = append(env, "CHECKPOINT_PUBLIC_KEY_FILE="+public, "CHECKPOINT_INTERVAL=1s")
	requireCheck(t, env, 0,
		"ok       checkpoint key                     a test signature by the private key "+
			"labelled \"checkpoints\" verifies")
	requireCheck(t, append(slices.Clone(env), "CHECKPOINT_KEY_LABEL=away"), 2,
		"failed   checkpoint key                     the token has no private key labelled "+
			"\"away\"")
	requireCheck(t, append(slices.Clone(env), "CHECKPOINT_KEY_LABEL="+ca.KeyLabel), 2,
		"failed   checkpoint key                     the private key labelled \""+ca.KeyLabel+
			"\" does not belong to the public key")
	d := startReady(t, ca, env...)
	must.Eventually(t, "a checkpoint", func(ctx context.Context) (bool, error) {
		return regexp.MustCompile(`journal_lines_total{kind="checkpoint"} [1-9]`).
			MatchString(d.Metrics(ctx)), nil
	})
	command(t, ca, env, "audit", "verify", "--checkpoint-key", public).prints(t, 0,
		"which vouch for all up to")
}

// A checkpoint key that can leave the token is used. run and check warn about it.
func TestCheckpointKeyThatCanLeaveIsLogged(t *testing.T) {
	imported := importKey(t, "imported-checkpoints")
	der := must.Get(x509.MarshalPKIXPublicKey(certificateOf(t, imported).PublicKey))(t)
	public := tempFile(t, "checkpoint.pub",
		string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	env := []string{
		"STATE_DIR=" + filepath.Join(t.TempDir(), "state"),
		"CHECKPOINT_KEY_LABEL=" + imported.KeyLabel,
		"CHECKPOINT_PUBLIC_KEY_FILE=" + public,
	}
	requireCheck(t, env, 0, "warning  checkpoint key ")
	d := startReady(t, ca, env...)
	waitLog(t, d, "THE CHECKPOINT KEY CAN LEAVE ITS TOKEN")
	if strings.Contains(d.Log(), "THE CA'S KEY CAN LEAVE") {
		t.Errorf("the log has the warning for the CA's key:\n%s", d.Log())
	}
}

// hsm-signer is killed between the publication and its line in the journal, and then the request is
// deleted. The client has this certificate, so the journal does not call it an orphan, and its pod
// is listed when it expires. The same request, as after a restore of etcd, would get the same
// certificate.
func TestDeliveredCertificateIsNoOrphan(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	env := []string{"STATE_DIR=" + state}
	d := startReady(t, ca, env...)
	p, asking := newRequester(t, node)
	csr := submit(t, p, asking)
	requireAnswered(t, p, asking)
	must.OK(t, d.Shutdown())
	cutBehindSigned(t, filepath.Join(state, "journal-00000001.jsonl"), string(csr.UID))
	must.OK(t, shared.Cluster.Requests().Delete(t.Context(), csr.Name, metav1.DeleteOptions{}))
	d = startReady(t, ca, env...)
	waitMetrics(t, d, `hsm_signer_journal_lines_total{kind="unconfirmed"} 1`)
	list := command(t, ca, env, "audit", "list")
	list.prints(t, 0, "unconfirmed")
	list.lacks(t, "orphaned")
	command(t, ca, env, "audit", "list", "--expiring", "400d").prints(t, 0, csr.Name)
	command(t, ca, env, "audit", "verify").prints(t, 0, "1 are unconfirmed")
}

// cutBehindSigned truncates a journal after the line with the certificate of a request, as a kill
// would.
func cutBehindSigned(t *testing.T, path, uid string) {
	t.Helper()
	text := must.Get(os.ReadFile(path))(t)
	end := 0
	for line := range bytes.Lines(text) {
		end += len(line)
		if bytes.Contains(line, []byte(`"kind":"signed","uid":"`+uid)) {
			must.OK(t, os.Truncate(path, int64(end)))
			return
		}
	}
	t.Fatalf("there is no certificate of %s in %s", uid, path)
}

// Two processes on one node do not write one journal: the second stands by, not ready, until the
// first has exited.
func TestJournalIsForOne(t *testing.T) {
	env := []string{"STATE_DIR=" + filepath.Join(t.TempDir(), "state")}
	first := startReady(t, ca, env...)
	second := start(t, ca, env...)
	must.OK(t, second.WaitNotReady(t.Context(), "[-] journal: the journal is in use"))
	must.OK(t, first.Kill())
	must.OK(t, second.WaitReady(t.Context()))
	must.OK(t, second.Shutdown())
}
