package soak

import (
	"os"
	"path/filepath"
	"testing"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// policyOfBoth has a rule for Calico's nodes, and one for pod certificates.
const policyOfBoth = `
version: 1
budget: ` + testenv.LargeBudget + `
rules:
  - name: node
    from: {serviceAccounts: [calico-system/calico-node]}
    grant:
      dnsNames: [typha-client]
      ipAddresses: [pod]
      keys: [ecdsa-p256, rsa-2048]
      usages: [digital signature, key encipherment, key agreement, server auth, client auth]
  - name: pods
    from: {podCertificates: true, serviceAccounts: ["*/*"]}
    grant:
      uris: ["spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}"]
      keys: [ecdsa-p256]
      usages: [digital signature, client auth, server auth]
`

// forBoth returns the settings of a signer of both kinds of requests.
func (s *fixture) forBoth(t *testing.T) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "policy.yaml")
	must.OK(t, os.WriteFile(file, []byte(policyOfBoth), 0o600))
	return append(s.forPods(t), "POLICY_FILE="+file)
}

// A whole rotation, during which leaders are killed and stopped.
func TestRotation(t *testing.T) {
	report := begin(t, 33,
		"a whole rotation with a step back, while 5 requests a second and 2 for pod certificates "+
			"come in; after every step kill -9 of the leader, and every other step is taken "+
			"while the former leader is stopped with SIGSTOP",
		"lost 0; second certificates for one UID 0; every certificate of the CA that signs in its "+
			"phase, or in the one before")
	r := newRotation(t, shared, shared.forBoth(t)...)
	r.leader(t)
	pods, former := stream(t, shared.newPodBatch(t), 2), stream(t, shared.newBatch(t), 5)
	var latter *streamed
	faults := 0
	for n, s := range []step{announce, trust, sign, backToTrusted, sign, retire} {
		if full && n%2 == 1 {
			r.pause(t, func() { r.take(t, s) })
			faults++
		} else {
			r.take(t, s)
		}
		if s.phase == trust.phase && latter == nil { // the pods of before trust one CA only
			latter = stream(t, shared.newBatch(t), 5)
			former.end(t)
			must.OK(t, shared.Cluster.DeletePod(t.Context(), former.podOf().Pod))
		}
		pods.waitForSize(t, pods.size()+5)
		if full || n == 2 {
			r.killLeader(t)
			faults++
		}
	}
	latter.end(t)
	pods.end(t)
	for _, d := range r.daemons {
		must.OK(t, d.Shutdown())
	}
	another := former.another + latter.another + pods.another
	if another > 0 {
		t.Errorf("%d requests were seen with one certificate, and then with another", another)
	}
	by := r.requireCAs(t, 2)
	report.measured("%d requests and %d for pod certificates, lost 0; %d leaders killed or stopped",
		former.size()+latter.size(), pods.size(), faults)
	report.measured("%d certificates of the former CA, %d of the next", by[0], by[1])
	report.measured("second certificates for one UID %d", another)
	r.account(t, report, former.batch, latter.batch, pods.batch)
}

// killLeader kills the leader, waits for the other one to lead, and starts it again. The short form
// does not wait for the end of the lease.
func (r *rotation) killLeader(t *testing.T) {
	t.Helper()
	if full {
		r.kill(t)
		return
	}
	leader := r.leader(t)
	must.OK(t, r.daemons[leader].Kill())
	r.freeLease(t)
	r.takeover(t, leader)
	r.start(t, leader)
}

// streamed is a batch whose requests come all the time, and whose certificates are watched.
type streamed struct {
	*batch
	*witness
	stop func()
}

func stream(t *testing.T, c *batch, perSecond int) *streamed {
	t.Helper()
	return &streamed{c, watchCertificates(t, c), c.keepAsking(t, perSecond)}
}

// end ends the stream when every request has its certificate.
func (s *streamed) end(t *testing.T) {
	t.Helper()
	s.stop()
	s.waitForAll(t)
	s.witness.end(t)
}

// podOf returns the pod that the requests are of.
func (s *streamed) podOf() testenv.Pod { return s.batch.kind.(csrs).pod }
