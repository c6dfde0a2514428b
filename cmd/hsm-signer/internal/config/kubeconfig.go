package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
)

// inPod reports whether this runs in a pod, of whichever cluster.
func inPod() bool {
	_, err := rest.InClusterConfig()
	return !errors.Is(err, rest.ErrNotInCluster)
}

// inServedCluster reports whether this runs in a pod of the cluster that it serves.
func (c *Config) inServedCluster() bool { return c.InPod && c.Kubeconfig == "" }

// clientConfig returns how to reach the API server.
func (c *Config) clientConfig() (*rest.Config, error) {
	if c.Kubeconfig != "" {
		return c.loadKubeconfig()
	}
	config, err := rest.InClusterConfig()
	switch {
	case errors.Is(err, rest.ErrNotInCluster):
		return nil, errors.New("is not set, and this is not a pod: name a kubeconfig file")
	case err != nil:
		return nil, fmt.Errorf("is not set, and the pod has no service account token: %w; "+
			"set automountServiceAccountToken: true, or name a kubeconfig file", err)
	}
	return config, nil
}

// loadKubeconfig merges the files of KUBECONFIG, a list of paths, as kubectl does. Files that do
// not exist are left out, but one must. No other user may write to the files, or to the keys and
// certificates that they name.
func (c *Config) loadKubeconfig() (*rest.Config, error) {
	paths := filepath.SplitList(c.Kubeconfig)
	secret := c.secret(kubeconfigRules, c.warnOf("KUBECONFIG"))
	found := 0
	for _, path := range paths {
		if path == "" {
			continue
		}
		err := secret.Check(path)
		switch {
		case err == nil:
			found++
		case !errors.Is(err, fs.ErrNotExist) || len(paths) == 1:
			return nil, err
		}
	}
	if found == 0 {
		return nil, fmt.Errorf("none of the files in %q exists", c.Kubeconfig)
	}
	rules := &clientcmd.ClientConfigLoadingRules{Precedence: paths}
	merged, err := rules.Load()
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(
		*merged, "", &clientcmd.ConfigOverrides{}, rules).ClientConfig()
	if err != nil {
		return nil, err
	}
	return config, checkNamed(config, secret)
}

// checkNamed checks the files that a kubeconfig names.
func checkNamed(config *rest.Config, secret trustedfile.Rules) error {
	var wrong []error
	check := func(rules trustedfile.Rules, path string) {
		if path != "" {
			wrong = append(wrong, rules.Check(path))
		}
	}
	check(secret, config.KeyFile)
	check(secret, config.BearerTokenFile)
	check(kubeconfigRules, config.CertFile)
	check(kubeconfigRules, config.CAFile)
	return errors.Join(wrong...)
}
