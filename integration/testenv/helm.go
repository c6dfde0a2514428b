package testenv

import (
	"context"
	"io"
	"path/filepath"
)

// The version of Helm that installs the chart in tests. It is in no go.mod, so that it changes
// nothing in the build of the API server.
const (
	helmPackage = "helm.sh/helm/v4/cmd/helm"
	helmVersion = "v4.3.1"
)

// A Helm runs Helm as the admin of a cluster. Its cache and configuration are in Dir.
type Helm struct {
	Kubeconfig string // empty: none
	Dir        string
	binary     string
}

// NewHelm returns a Helm of the pinned version. If the user's cache lacks it NewHelm builds it,
// which takes minutes; of several processes one builds and the others wait. dir must exist.
// progress, if not nil, receives a line for each slow step.
func NewHelm(ctx context.Context, kubeconfig, dir string, progress io.Writer) (*Helm, error) {
	goVersion, err := goOutput(ctx, "", nil, "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	target, err := Cached(ctx, "helm-"+helmVersion+"-"+goVersion, []string{"helm"}, progress,
		"building Helm "+helmVersion, func(temp string) error {
			_, err := goOutput(ctx, temp, []string{"GOBIN=" + temp, "CGO_ENABLED=0"}, "install",
				helmPackage+"@"+helmVersion)
			return err
		})
	return &Helm{Kubeconfig: kubeconfig, Dir: dir, binary: filepath.Join(target, "helm")}, err
}

// Run runs Helm with the arguments and returns what it prints. The error holds its messages.
func (h *Helm) Run(ctx context.Context, args ...string) (string, error) {
	return Output(ctx, "", []string{"KUBECONFIG=" + h.Kubeconfig, "HELM_CACHE_HOME=" + h.Dir,
		"HELM_CONFIG_HOME=" + h.Dir, "HELM_DATA_HOME=" + h.Dir}, h.binary, args...)
}
