package testenv

import (
	"context"
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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	certificatesclient "k8s.io/client-go/kubernetes/typed/certificates/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// The files in the directory of a cluster.
const (
	portFile       = "port"
	tokenFile      = "admin.token"
	tokensFile     = "tokens.csv"
	accountKeyFile = "service-account.key"
	certDir        = "certs"
	servingFile    = "certs/apiserver.crt"
	kubeconfigFile = "kubeconfig"
)

// MakeSecrets writes the files that an API server needs so that Attach can connect to it:
// tokens.csv with the admin's token (--token-auth-file), and service-account.key
// (--service-account-key-file, --service-account-signing-key-file). Existing files stay.
func MakeSecrets(dir string) error {
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
	accountKey := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	// The key is last: if it exists, all files exist.
	return errors.Join(
		os.WriteFile(filepath.Join(dir, tokenFile), []byte(token), 0o600),
		os.WriteFile(filepath.Join(dir, tokensFile), []byte(users), 0o600),
		os.WriteFile(filepath.Join(dir, accountKeyFile), accountKey, 0o600),
	)
}

// host returns the URL of the API server.
func (c *Cluster) host() (string, error) {
	if c.url != "" {
		return c.url, nil
	}
	port, err := os.ReadFile(filepath.Join(c.dir, portFile))
	return "https://127.0.0.1:" + strings.TrimSpace(string(port)), err
}

// adminConfig returns the admin's client configuration.
func (c *Cluster) adminConfig() (*rest.Config, error) {
	host, err := c.host()
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(c.dir, tokenFile))
	if err != nil {
		return nil, err
	}
	// The last certificate in the file is that of the CA.
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

// Config returns a copy of the admin's client configuration, without a limit on the rate of
// requests.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.admin) }

// Client returns the admin's client.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Requests returns the admin's client for certificate requests.
func (c *Cluster) Requests() certificatesclient.CertificateSigningRequestInterface {
	return c.client.CertificatesV1().CertificateSigningRequests()
}

// DeleteRequests deletes every certificate request.
func (c *Cluster) DeleteRequests(ctx context.Context) error {
	return c.Requests().DeleteCollection(ctx, *metav1.NewDeleteOptions(0), metav1.ListOptions{})
}

// Kubeconfig returns the path of the admin's kubeconfig file.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, kubeconfigFile) }

// ConfigFor returns the client configuration of the token's owner.
func (c *Cluster) ConfigFor(token string) *rest.Config {
	config := rest.AnonymousClientConfig(c.admin)
	config.BearerToken = token
	config.QPS = -1
	return config
}

// WriteKubeconfig writes a kubeconfig file that only the file's owner may read.
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
		Contexts: map[string]*clientcmdapi.Context{"testenv": {Cluster: "testenv",
			AuthInfo: "user"}},
		CurrentContext: "testenv",
	}
	if err := clientcmd.WriteToFile(kubeconfig, path); err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return nil
}
