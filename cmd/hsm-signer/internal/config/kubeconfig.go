package config

import (
	"errors"
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"

	"hsm-signer/cmd/hsm-signer/internal/credential"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/kube/clientset"
)

// inPod reports whether this runs in a pod, of whichever cluster.
func inPod() bool {
	_, err := rest.InClusterConfig()
	return !errors.Is(err, rest.ErrNotInCluster)
}

// inServedCluster reports whether this runs in a pod of the cluster that it serves.
func (c *Config) inServedCluster() bool { return c.InPod && c.Kubeconfig == "" }

// openCredential returns how to reach the API server, and the credential for it. See
// [credential.Open] for wrap.
func (c *Config) openCredential(wrap transport.WrapperFunc) (*credential.Source, error) {
	if c.Kubeconfig != "" {
		files := credential.Files{List: c.Kubeconfig, Rules: kubeconfigRules}
		if c.InPod { // the default mode of a Secret's files lets everyone read them
			files.Exposed = c.warnOf("KUBECONFIG")
		}
		return credential.Open(files, wrap)
	}
	config, err := rest.InClusterConfig()
	switch {
	case errors.Is(err, rest.ErrNotInCluster):
		return nil, errors.New("is not set, and this is not a pod: name a kubeconfig file")
	case err != nil:
		return nil, fmt.Errorf("is not set, and the pod has no service account token: %w; "+
			"set automountServiceAccountToken: true, or name a kubeconfig file", err)
	}
	return credential.InPod(config, wrap)
}

// LoadClient returns the client of the API server, and its credential. Every call goes through what
// wrap returns, unless wrap is nil.
func (c *Config) LoadClient(faults *setting.Faults,
	wrap transport.WrapperFunc) (*clientset.Clientset, *credential.Source) {
	source, err := c.openCredential(wrap)
	if err != nil {
		faults.Add("KUBECONFIG", err)
		return nil, nil
	}
	client, err := source.Client()
	if err != nil {
		faults.Add("KUBECONFIG", err)
		return nil, nil
	}
	return client, source
}
