package credential

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
)

// Files are kubeconfig files, with the rules that they must pass.
type Files struct {
	List    string            // their paths, as in KUBECONFIG
	Rules   trustedfile.Rules // for the files, and for certificates that they name
	Exposed func(error)       // is called for a secret that others may read; nil: it is refused
}

// secret returns the rules for a file that others must not read.
func (f Files) secret() trustedfile.Rules {
	rules := f.Rules
	rules.Exposed = func(err error) error {
		if f.Exposed == nil {
			return err
		}
		f.Exposed(err)
		return nil
	}
	return rules
}

// pluginRules are for the program of an exec plugin.
var pluginRules = trustedfile.Rules{Limit: 1 << 40,
	Stake: "which credential the API server gets, and runs as the user of hsm-signer"}

// loaded is what the files say, without a reference to another file.
type loaded struct {
	config  *rest.Config
	cluster clientcmdapi.Cluster  // the API server and how it is believed
	user    clientcmdapi.AuthInfo // the credential
	text    []byte                // changes when any of it does
}

// load merges the files as kubectl does, and reads the files that they name. Files that do not
// exist are left out, but one must.
func (f Files) load() (*loaded, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	rules := &clientcmd.ClientConfigLoadingRules{Precedence: filepath.SplitList(f.List)}
	merged, err := rules.Load()
	if err != nil {
		return nil, err
	}
	if merged.CurrentContext != "" {
		if err := clientcmdapi.MinifyConfig(merged); err != nil {
			return nil, err
		}
	}
	all := &loaded{}
	for _, cluster := range merged.Clusters {
		if err := inline(f.Rules, &cluster.CertificateAuthority,
			&cluster.CertificateAuthorityData); err != nil {
			return nil, err
		}
		cluster.LocationOfOrigin, cluster.Extensions = "", nil
		all.cluster = *cluster
	}
	for _, user := range merged.AuthInfos {
		if err := f.inlineUser(user); err != nil {
			return nil, err
		}
		user.LocationOfOrigin, user.Extensions = "", nil
		all.user = *user
	}
	if all.text, err = clientcmd.Write(*merged); err != nil {
		return nil, err
	}
	all.config, err = clientcmd.NewDefaultClientConfig(*merged,
		&clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, err
	}
	if plugin := all.config.ExecProvider; plugin != nil {
		return all, guardPlugin(plugin)
	}
	return all, nil
}

// check returns an error if a file is not to be trusted, or none exists.
func (f Files) check() error {
	paths, found := filepath.SplitList(f.List), 0
	for _, path := range paths {
		if path == "" {
			continue
		}
		err := f.secret().Check(path)
		switch {
		case err == nil:
			found++
		case !errors.Is(err, fs.ErrNotExist) || len(paths) == 1:
			return err
		}
	}
	if found == 0 {
		return fmt.Errorf("none of the files in %q exists", f.List)
	}
	return nil
}

// inlineUser puts the content of files into the user's entry, and checks the plugin's program.
func (f Files) inlineUser(user *clientcmdapi.AuthInfo) error {
	err := errors.Join(
		inline(f.Rules, &user.ClientCertificate, &user.ClientCertificateData),
		inline(f.secret(), &user.ClientKey, &user.ClientKeyData))
	if user.TokenFile != "" { // it has precedence, as in client-go
		text, tokenErr := f.secret().Read(user.TokenFile)
		if tokenErr == nil && len(bytes.TrimSpace(text)) == 0 {
			tokenErr = fmt.Errorf("%s is empty: it must hold a token", user.TokenFile)
		}
		user.Token, user.TokenFile = strings.TrimSpace(string(text)), ""
		err = errors.Join(err, tokenErr)
	}
	if plugin := user.Exec; plugin != nil {
		program, pluginErr := exec.LookPath(plugin.Command)
		if pluginErr == nil {
			pluginErr = pluginRules.Check(program)
		}
		plugin.Command = program
		err = errors.Join(err, pluginErr)
	}
	return err
}

// inline replaces the name of a file by its content. If there are both, client-go refuses that.
func inline(rules trustedfile.Rules, path *string, content *[]byte) error {
	if *path == "" || len(*content) > 0 {
		return nil
	}
	text, err := rules.Read(*path)
	if err != nil {
		return err
	}
	*path, *content = "", text
	return nil
}

// allows returns an error if more than the credential differs.
func (l *loaded) allows(fresh *loaded) error {
	before, now := l.cluster, fresh.cluster
	switch {
	case before.Server != now.Server:
		return fmt.Errorf("it names another API server, %s instead of %s; %w", now.Server,
			before.Server, errChanged)
	case !bytes.Equal(before.CertificateAuthorityData, now.CertificateAuthorityData) ||
		before.InsecureSkipTLSVerify != now.InsecureSkipTLSVerify:
		return fmt.Errorf("it names another CA for the API server %s; %w", now.Server, errChanged)
	case !reflect.DeepEqual(before, now):
		return fmt.Errorf("it reaches the API server %s in another way (tls-server-name, "+
			"proxy-url or disable-compression); %w", now.Server, errChanged)
	case !reflect.DeepEqual(impersonated(l.user), impersonated(fresh.user)):
		return fmt.Errorf("it impersonates another user; %w", errChanged)
	}
	return nil
}

// impersonated returns the user with only its fields that name someone to impersonate.
func impersonated(user clientcmdapi.AuthInfo) clientcmdapi.AuthInfo {
	return clientcmdapi.AuthInfo{
		Impersonate: user.Impersonate, ImpersonateUID: user.ImpersonateUID,
		ImpersonateGroups: user.ImpersonateGroups, ImpersonateUserExtra: user.ImpersonateUserExtra,
	}
}
