// Command cluster keeps a real Kubernetes API server with its etcd running in the background, on
// 127.0.0.1 alone, for a developer to try things on.
//
//	cluster up [--dir DIR]     start it; prints one line to be evaluated by a shell
//	cluster down [--dir DIR]   stop it; its state stays
//	cluster build              only build the servers, which up does too
//
// Started again it is the same cluster. To have a new one, remove DIR between down and up.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"hsm-signer/integration/testenv"
)

const usage = "usage: cluster up|down [--dir DIR], or cluster build"

func main() { testenv.Main("cluster", run) }

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	flags := flag.NewFlagSet("cluster "+args[0], flag.ContinueOnError)
	dir := flags.String("dir", "",
		"directory of the cluster's state (default .cluster of the repository)")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if *dir == "" {
		root, err := repository()
		if err != nil {
			return err
		}
		*dir = filepath.Join(root, ".cluster")
	}
	switch args[0] {
	case "up":
		return up(ctx, *dir)
	case "down":
		return testenv.StopCluster(*dir)
	case "build":
		_, err := testenv.Binaries(ctx, os.Stderr)
		return err
	}
	return fmt.Errorf("unknown command %q; %s", args[0], usage)
}

// up starts the cluster in dir unless it runs. It prints only shell commands on standard output:
// the kubeconfig, and the PATH of the built kubectl if there is no other.
func up(ctx context.Context, dir string) error {
	cluster, err := testenv.StartCluster(ctx,
		testenv.ClusterOptions{Dir: dir, Detach: true, Progress: os.Stderr})
	if err != nil {
		return err
	}
	path := ""
	if _, err := exec.LookPath("kubectl"); err != nil {
		bin, err := testenv.Binaries(ctx, os.Stderr)
		if err != nil {
			return err
		}
		path = fmt.Sprintf(` PATH="$PATH:%s"`, filepath.Dir(bin.Kubectl))
	}
	fmt.Printf("export KUBECONFIG=%s%s\n", cluster.Kubeconfig(), path)
	return nil
}

// repository returns the nearest parent of the working directory that has this module in
// integration.
func repository() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "integration", "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not in the repository; say --dir", start)
		}
	}
}
