// Package service loads everything that the configuration of "run" names, for each CA.
//
// Contract: nothing here is in touch with the token or the API server. Files are read, and what
// does not fit together is added to the faults: so "run" fails before it touches anything, and
// "check" reports the same.
package service

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"path/filepath"

	"k8s.io/client-go/transport"

	"hsm-signer/cmd/hsm-signer/internal/apiclock"
	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/credential"
	"hsm-signer/cmd/hsm-signer/internal/judge"
	"hsm-signer/cmd/hsm-signer/internal/pin"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/hsm"
	"hsm-signer/issuer"
	"hsm-signer/kube"
	"hsm-signer/kube/access"
	"hsm-signer/kube/clientset"
	"hsm-signer/kube/csr"
	"hsm-signer/kube/lease"
	"hsm-signer/kube/podcert"
	"hsm-signer/kube/request"
	"hsm-signer/kube/trustbundle"
	"hsm-signer/policy"
)

// A Service is everything that the configuration of a CA names, loaded and checked.
type Service struct {
	*config.Config
	Policy *policy.Policy
	// with APPROVE=shadow and no CA_CERT_FILE, one without constraints
	CA               *issuer.CA
	Anchors          issuer.Anchors   // to publish; nil: none
	CheckpointPublic crypto.PublicKey // of the checkpoint key; nil: there are no checkpoints
	Next             *Next            // of a rotation; nil: none
	Lease            *lease.Lease     // nil: no election
	Client           *clientset.Clientset
	Credential       *credential.Source // of the client
	Clock            *apiclock.Clock    // of the API server
}

// Load loads everything and adds what is wrong to the faults. Every call to the API server goes
// through what wrap returns, unless wrap is nil.
func Load(c *config.Config, faults *setting.Faults, wrap transport.WrapperFunc) *Service {
	s := &Service{Config: c, Policy: c.LoadPolicy(faults), Clock: &apiclock.Clock{}}
	if c.AcceptUnset && c.Mode == kube.Wait {
		faults.Addf("UNSET_SIGNER_NAME", "is accept, and APPROVE is false: before 1.18 the "+
			"controller manager signs whatever is approved, so the certificate must come before "+
			"the approval; let hsm-signer approve")
	}
	if len(c.SignerNames) == 0 {
		faults.Missing("SIGNER_NAME", "is not set: name the signer to serve, such as "+
			"example.com/calico; it is what Calico's Installation names as signerName")
	}
	s.checkCleanUp(faults)
	c.ResolveStateDir(faults)
	switch {
	case faults.Has("APPROVE"): // so it is not known whether a token is needed
		s.CA = c.LoadOptionalCA(faults)
	case c.Mode == kube.Shadow:
		_, err := pin.Take() // it is not needed, and must not stay in the environment
		faults.Add("PKCS11_PIN", err)
		faults.Add("STATE_DIR", RequireOwn(c.StateDir))
		s.CA = c.LoadOptionalCA(faults)
	default:
		s.loadSigning(faults)
	}
	judge.CheckRules(s.Policy, s.CA, faults)
	s.Lease = c.RequireLease(faults)
	s.loadNext(faults)
	s.Client, s.Credential = c.LoadClient(faults, transport.Wrappers(s.Clock.Watch, wrap))
	return s
}

// Kind are the requests that are served: [Service.Requests], and those of pods if they are wanted.
func (s *Service) Kind() request.Kind {
	if !s.PodCertificates {
		return s.Requests()
	}
	return request.Kinds{s.Requests(), s.PodRequests()}
}

// PodRequests are the requests for pod certificates.
func (s *Service) PodRequests() podcert.Kind {
	return podcert.Kind{
		Client: s.Client, SignerNames: s.SignerNames, KeepFinished: s.Mode == kube.Shadow,
	}
}

// Requests are the CertificateSigningRequests that are served.
func (s *Service) Requests() csr.Kind {
	return csr.Kind{
		Client: s.Client, SignerNames: s.SignerNames, AcceptUnset: s.AcceptUnset,
		KeepFinished: s.Mode == kube.Shadow,
	}
}

// loadSigning loads what only a process that signs needs: the CA, and what names the keys in the
// token.
func (s *Service) loadSigning(faults *setting.Faults) {
	s.RequireToken(faults)
	s.RequireKey(faults)
	if s.CA = s.LoadCA(faults); s.CA == nil {
		return
	}
	s.Anchors = s.loadAnchors(faults)
	s.Token.Signature = issuer.SignerOpts(s.Algorithm, s.CA.Certificate().PublicKey)
	key, err := s.Key(nil)
	if err != nil {
		faults.Add("CA_CERT_FILE", err)
		return
	}
	_, err = issuer.New(s.Authority(key), nil) // signs nothing: only checks
	faults.Add("SIGNATURE_ALGORITHM", err)
	s.loadCheckpointKey(faults)
	if _, err := s.CheckpointKey(key); err != nil {
		faults.Add("CHECKPOINT_PUBLIC_KEY_FILE", err)
	}
}

// loadCheckpointKey reads the public half of the checkpoint key, if checkpoints are wanted.
func (s *Service) loadCheckpointKey(faults *setting.Faults) {
	want := s.Checkpoints
	if !want.Wanted() {
		return
	}
	if want.Key.Label == "" && len(want.Key.ID) == 0 {
		faults.Missing("CHECKPOINT_KEY_LABEL", "is not set, and neither is CHECKPOINT_KEY_ID, "+
			"but CHECKPOINT_PUBLIC_KEY_FILE is: name the key by one of them", "CHECKPOINT_KEY_ID")
		return
	}
	if want.PublicKeyFile == "" {
		faults.Addf("CHECKPOINT_PUBLIC_KEY_FILE",
			"is not set: name the file that \"hsm-signer ca create-checkpoint-key\" wrote")
		return
	}
	public, err := config.ReadPublicKey(want.PublicKeyFile)
	switch {
	case err != nil:
		faults.Add("CHECKPOINT_PUBLIC_KEY_FILE", err)
	case s.CA.Matches(public) == nil:
		faults.Addf("CHECKPOINT_KEY_LABEL", "names the CA's key: checkpoints need their own key")
	default:
		s.CheckpointPublic = public
	}
}

// checkCleanUp adds a fault if finished requests are to be deleted by a shadow.
func (s *Service) checkCleanUp(faults *setting.Faults) {
	if s.DeleteFinishedAfter > 0 && s.Mode == kube.Shadow && !faults.Has("APPROVE") {
		faults.Addf("DELETE_FINISHED_AFTER",
			"is set, and APPROVE is shadow, which writes nothing to the cluster: unset one of them")
	}
}

// loadAnchors returns the certificates of TRUST_BUNDLE_FILE, which must trust the CA; nil if that
// is not set.
func (s *Service) loadAnchors(faults *setting.Faults) issuer.Anchors {
	if s.TrustBundleFile == "" && len(s.TrustBundleNamespaces) > 0 {
		faults.Addf("TRUST_BUNDLE_NAMESPACES", "is set without TRUST_BUNDLE_FILE, so nothing "+
			"would be published: set that too")
	}
	roots := s.LoadRoots(faults)
	requireTrust("TRUST_BUNDLE_FILE", s.TrustBundleFile, roots, s.CA, faults)
	return roots
}

// requireTrust adds a fault if the certificates of a file that the variable names do not trust the
// CA. There may be none.
func requireTrust(variable, path string, roots issuer.Anchors, ca *issuer.CA,
	faults *setting.Faults) {
	if roots == nil {
		return
	}
	if err := roots.Trust(ca); err != nil {
		faults.Addf(variable, "%s: %v", path, err)
	}
}

// Key returns the CA's key, which is not in touch with the token yet. It calls record before each
// test signature, unless record is nil.
func (s *Service) Key(record func(context.Context, hsm.ProbeTime) error) (*hsm.Key, error) {
	token := s.Token
	token.BeforeProbe = record
	return hsm.NewKey(token, s.CA.Certificate().PublicKey)
}

// Authority returns the CA with its key.
func (s *Service) Authority(key issuer.Key) issuer.Authority {
	return issuer.Authority{CA: s.CA, Key: key, Algorithm: s.Algorithm}
}

// CheckpointKey returns the checkpoint key, which uses the connection of the CA's key. It is nil if
// there are no checkpoints.
func (s *Service) CheckpointKey(key *hsm.Key) (*hsm.CheckpointKey, error) {
	if s.CheckpointPublic == nil {
		return nil, nil
	}
	return key.Checkpoint(s.Checkpoints.Key, s.CheckpointPublic)
}

// ErrNotOwn is why a shadow does not start in the STATE_DIR of a process that signs.
var ErrNotOwn = errors.New("holds the journal of a process that signs: use another directory " +
	"for a shadow")

// RequireOwn returns an error if the directory holds a journal.
func RequireOwn(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "journal-*.jsonl"))
	if err == nil && len(files) > 0 {
		err = fmt.Errorf("%s %w", dir, ErrNotOwn)
	}
	return err
}

// Controller returns what the settings say of the controller, without its decider, its issuer and
// what reports. It reads pods in the namespaces of the policy in force.
func (s *Service) Controller(inForce func() *policy.Policy) kube.Config {
	return kube.Config{
		Client: s.Client, Kind: s.Kind(), SignerNames: s.SignerNames, Mode: s.Mode,
		PodCertificates: s.PodCertificates, Lease: s.Lease, Workers: s.Workers, Pace: s.Pace,
		DeleteFinishedAfter: s.DeleteFinishedAfter,
		PodNamespaces: func() []string {
			namespaces, bounded := inForce().PodNamespaces()
			if !bounded {
				return nil
			}
			return namespaces
		},
	}
}

// Permissions lists what "run" needs.
func (s *Service) Permissions() []access.Permission {
	controller := s.Controller(func() *policy.Policy { return s.Policy })
	use := controller.Use()
	use.TrustBundles = s.Anchors != nil && len(s.TrustBundleNamespaces) == 0
	use.ConfigMaps, use.Services = s.TrustBundleNamespaces, s.Policy.NeedsServices()
	return use.Permissions()
}

// TrustBundlePlace is where the certificates of TRUST_BUNDLE_FILE are published.
func (s *Service) TrustBundlePlace() trustbundle.Place {
	if len(s.TrustBundleNamespaces) > 0 {
		return trustbundle.ConfigMaps{Client: s.Client, Namespaces: s.TrustBundleNamespaces,
			Signers: s.SignerNames}
	}
	return trustbundle.Bundles{Client: s.Client, Signers: s.SignerNames}
}
