package e2e

import (
	"fmt"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// An ownSigner is a signer name and a lease that one test alone uses, so that the test can run in
// parallel with tests of other signers. Both have the name of the value.
type ownSigner string

// ownRights are those of deploy/base/rbac.yaml that depend on the two names.
const ownRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "%[1]s"}
rules:
  - apiGroups: [certificates.k8s.io]
    resources: [signers]
    resourceNames: ["example.com/%[1]s"]
    verbs: [approve, sign]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "%[1]s"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "%[1]s"}
subjects: [{kind: ServiceAccount, namespace: hsm-signer, name: hsm-signer}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: "%[1]s", namespace: hsm-signer}
rules:
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    resourceNames: ["%[1]s"]
    verbs: [get, update]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: "%[1]s", namespace: hsm-signer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: "%[1]s"}
subjects: [{kind: ServiceAccount, namespace: hsm-signer, name: hsm-signer}]
`

// newOwnSigner gives hsm-signer the rights for the signer and for its lease.
func newOwnSigner(t *testing.T, name string) ownSigner {
	t.Helper()
	must.OK(t, shared.Cluster.Apply(t.Context(), fmt.Appendf(nil, ownRights, name)))
	return ownSigner(name)
}

// name returns the signer name.
func (s ownSigner) name() string { return "example.com/" + string(s) }

// env returns the environment of a process that serves the signer.
func (s ownSigner) env(more ...string) []string {
	return append([]string{"SIGNER_NAME=" + s.name(), "LEASE_NAME=" + string(s)}, more...)
}

// initContainer returns the init container of the pod, with a request to this signer.
func (s ownSigner) initContainer(p testenv.Pod) calico.InitContainer {
	asking := p.InitContainer(node)
	asking.SignerName = s.name()
	return asking
}

// submit returns a request of a new pod. Nothing has answered it yet.
func (s ownSigner) submit(t *testing.T) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	p := newPod(t, node)
	csr := submit(t, p, s.initContainer(p))
	return csr
}

// issue has a new pod get its certificate, and returns the name of its request.
func (s ownSigner) issue(t *testing.T) string {
	t.Helper()
	p := newPod(t, node)
	asking := s.initContainer(p)
	requireCertificate(t, p, asking)
	return asking.Name()
}
