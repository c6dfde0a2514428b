package check

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/cmd/hsm-signer/internal/expiry"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/cmd/hsm-signer/internal/service"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/issuer"
	"hsm-signer/kube"
)

const rotationName = "rotation of the CA"

// checkRotation reports the phase of the CA's rotation, if there is one or could be, and how many
// certificates of each CA are in use. It returns the phase; none if it is not known.
func checkRotation(ctx context.Context, s *service.Service, report reporter) rotation.State {
	if s.Lease == nil {
		return rotation.State{}
	}
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	found, err := s.Client.Leases(s.Lease.Namespace).Get(ctx, s.Lease.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return rotation.State{} // no replica has led yet
	}
	if err != nil {
		report(rotationName, fmt.Sprintf("unknown: the lease %s/%s cannot be read: %v",
			s.Lease.Namespace, s.Lease.Name, err), errUnread)
		return rotation.State{}
	}
	state, keys := rotation.State{}, keysOf(s)
	if state, err = rotation.Read(found.Annotations); err == nil {
		err = state.MaySign(keys, rootsOf(s), casOf(s))
	}
	switch {
	case err != nil:
		report(rotationName, "", err)
	case state.Ongoing(keys):
		report(rotationName, state.String(), errNote)
	case s.Next != nil:
		report(rotationName, "none yet: \"hsm-signer ca rotate announce\" begins it", errNote)
	}
	if s.Next != nil {
		checkSign(s, state, report)
		checkUsage(ctx, s, state, report)
	}
	return state
}

// checkSign warns if clients may not trust yet what the next CA would issue.
func checkSign(s *service.Service, state rotation.State, report reporter) {
	if state.Current() != rotation.Trusted || state.Fits(keysOf(s)) != nil {
		return
	}
	if err := state.CheckRoots(keysOf(s), rootsOf(s), casOf(s)(state.To)); err != nil {
		report(rotationName, "the next CA cannot sign yet: "+err.Error(), errWarning)
	}
}

func keysOf(s *service.Service) rotation.Keys {
	keys := rotation.Keys{CA: s.CA.KeySHA256()}
	if s.Next != nil {
		keys.Next = s.Next.CA.KeySHA256()
	}
	return keys
}

func rootsOf(s *service.Service) rotation.Roots {
	roots := rotation.Roots{CA: s.Anchors}
	if s.Next != nil {
		roots.Next = s.Next.Anchors
	}
	return roots
}

// casOf returns a function that returns the CA with a key; nil if it is not configured.
func casOf(s *service.Service) func([sha256.Size]byte) *issuer.CA {
	return func(key [sha256.Size]byte) *issuer.CA {
		switch {
		case s.CA.KeySHA256() == key:
			return s.CA
		case s.Next != nil && s.Next.CA.KeySHA256() == key:
			return s.Next.CA
		}
		return nil
	}
}

// checkUsage reports which certificates of each CA are in use, as far as this journal knows.
func checkUsage(ctx context.Context, s *service.Service, state rotation.State, report reporter) {
	const name = "certificates in use"
	cas := []*x509.Certificate{s.CA.Certificate(), s.Next.CA.Certificate()}
	usage, err := expiry.FindUsage(ctx, s.StateDir, s.Client, time.Now(), cas, state.Trusted)
	if err == nil {
		err = usage.Fault
	}
	if err != nil {
		report(name, fmt.Sprintf("unknown: %v", err), errUnread)
		return
	}
	report(name, fmt.Sprintf("%d of CA_CERT_FILE, %d of NEXT_CA_CERT_FILE, as the journal in %s "+
		"knows", usage.Of[0].Live, usage.Of[1].Live, s.StateDir), nil)
	if n := len(usage.Early); n > 0 && state.Current() == rotation.Trusted {
		report(name, fmt.Sprintf("%s may know only one CA, which keeps the next one from signing: "+
			"\"hsm-signer ca rotate status\" names them", terminal.Plural(n, "pod")), errWarning)
	}
}

// trustedCAs returns the CAs that clients must trust in the phase.
func trustedCAs(s *service.Service, state rotation.State) []*issuer.CA {
	switch {
	case s.Mode == kube.Shadow:
		return nil // it has no CA
	case s.Next == nil || state.Fits(keysOf(s)) != nil:
		return []*issuer.CA{s.CA}
	}
	switch state.Current() {
	case rotation.Trusted, rotation.Signing:
		return []*issuer.CA{s.CA, s.Next.CA}
	case rotation.Retired:
		if state.To == s.Next.CA.KeySHA256() {
			return []*issuer.CA{s.Next.CA}
		}
	}
	return []*issuer.CA{s.CA}
}
