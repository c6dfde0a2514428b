package service

import (
	"path/filepath"
	"slices"

	"k8s.io/client-go/transport"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/kube/lease"
)

// LoadAll loads everything that the configuration names, for each CA of a process, and adds what is
// wrong to the faults. The calls of a CA to the API server go through what wrap returns for it,
// unless wrap is nil.
func LoadAll(p *config.Process, faults *setting.Faults,
	wrap func(ca string) transport.WrapperFunc) []*Service {
	var all []*Service
	for _, ca := range p.CAs {
		var wrapper transport.WrapperFunc
		if wrap != nil {
			wrapper = wrap(ca.Config.Name)
		}
		s := Load(ca.Config, ca.Faults, wrapper)
		for _, other := range all {
			s.requireApartFrom(other, ca.Faults)
		}
		all = append(all, s)
	}
	p.Report(faults)
	return all
}

// requireApartFrom adds a fault for everything that two CAs must not have in common.
func (s *Service) requireApartFrom(other *Service, faults *setting.Faults) {
	same := func(variable, value, others string) {
		if value != "" && value == others {
			faults.Addf(variable, "is %s, and so is that of %s: each CA needs its own", value,
				other.Name)
		}
	}
	for _, name := range s.SignerNames {
		if slices.Contains(other.SignerNames, name) {
			faults.Addf("SIGNER_NAME", "has %s, and so has that of %s: both would answer its "+
				"requests", name, other.Name)
		}
	}
	if s.AcceptUnset && other.AcceptUnset {
		faults.Addf("UNSET_SIGNER_NAME", "is accept, and so is that of %s: both would answer the "+
			"same requests", other.Name)
	}
	same("STATE_DIR", s.StateDir, other.StateDir)
	same("WITNESS_FILE", cleaned(s.WitnessFile), cleaned(other.WitnessFile))
	same("LEASE_NAME", nameOf(s.Lease), nameOf(other.Lease))
	for _, pair := range [][2]*Service{{s, other}, {other, s}} {
		signer, checked := pair[0], pair[1]
		if signer.CA != nil && checked.CheckpointPublic != nil &&
			signer.CA.Matches(checked.CheckpointPublic) == nil {
			faults.Addf("CHECKPOINT_KEY_LABEL", "of %s names the key of the CA %s: checkpoints "+
				"need their own key", checked.Name, signer.Name)
		}
	}
}

func cleaned(path string) string {
	if path == "" {
		return ""
	}
	return filepath.Clean(path)
}

func nameOf(l *lease.Lease) string {
	if l == nil {
		return ""
	}
	return l.Namespace + "/" + l.Name
}
