package testenv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// The files of a cluster's directory.
const (
	portFile       = "port"
	tokenFile      = "admin.token"
	tokensFile     = "tokens.csv"
	accountKeyFile = "service-account.key"
	certDir        = "certs"
	servingFile    = "certs/apiserver.crt"
	kubeconfigFile = "kubeconfig"
)

// makeSecrets makes the admin's token and the key that signs service accounts'
// tokens, unless the directory has them already.
func makeSecrets(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, accountKeyFile)); err == nil {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	token := rand.Text()
	users := fmt.Sprintf("%s,admin,admin,system:masters\n", token)
	// The key last: it says that all are there.
	return errors.Join(
		os.WriteFile(filepath.Join(dir, tokenFile), []byte(token), 0o600),
		os.WriteFile(filepath.Join(dir, tokensFile), []byte(users), 0o600),
		os.WriteFile(filepath.Join(dir, accountKeyFile), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600),
	)
}

// host is the URL of the API server.
func (c *Cluster) host() (string, error) {
	if c.url != "" {
		return c.url, nil
	}
	port, err := os.ReadFile(filepath.Join(c.dir, portFile))
	return "https://127.0.0.1:" + strings.TrimSpace(string(port)), err
}

// adminConfig is the admin's way to the API server.
func (c *Cluster) adminConfig() (*rest.Config, error) {
	host, err := c.host()
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(c.dir, tokenFile))
	if err != nil {
		return nil, err
	}
	// The file ends with the certificate of the CA that signed the first.
	ca, err := os.ReadFile(filepath.Join(c.dir, servingFile))
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host:            host,
		BearerToken:     string(token),
		TLSClientConfig: rest.TLSClientConfig{CAData: ca},
		QPS:             -1,
	}, nil
}

// Config is the admin's way to the API server, with no limit of its own on the
// rate of requests. It is the caller's to change.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.admin) }

// Client is the admin's client.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Kubeconfig is the path of the admin's kubeconfig file.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, kubeconfigFile) }

// ConfigFor is the way to the API server of whoever has the token.
func (c *Cluster) ConfigFor(token string) *rest.Config {
	config := rest.AnonymousClientConfig(c.admin)
	config.BearerToken = token
	config.QPS = -1
	return config
}

// WriteKubeconfig writes a kubeconfig file that only its owner may read.
func WriteKubeconfig(path string, config *rest.Config) error {
	kubeconfig := clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{"testenv": {
			Server:                   config.Host,
			CertificateAuthorityData: config.CAData,
		}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{"user": {
			Token:                 config.BearerToken,
			ClientCertificateData: config.CertData,
			ClientKeyData:         config.KeyData,
		}},
		Contexts:       map[string]*clientcmdapi.Context{"testenv": {Cluster: "testenv", AuthInfo: "user"}},
		CurrentContext: "testenv",
	}
	if err := clientcmd.WriteToFile(kubeconfig, path); err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return nil
}
