// Command release builds a release of the commit that is checked out: see package release.
//
//	release [--out DIR] [--release VERSION] [--base IMAGE] [--key FILE|URI [--public-key FILE]]
//	        [TARGET...]
//
// Each TARGET is a platform, such as linux_amd64. Without one, all are built.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"hsm-signer/integration/release"
)

func main() {
	o := release.Options{Repository: "..", Go: "go", Progress: os.Stderr}
	flag.StringVar(&o.Out, "out", "../dist", "the `directory` for the files")
	flag.StringVar(&o.Version, "release", "", "the `version`; by default that of the Git tag")
	flag.StringVar(&o.BaseImage, "base", "debian:bookworm-slim",
		"the container image's base `image`")
	flag.StringVar(&o.Key.Name, "key", "", "the private `key` that signs: a file or a PKCS#11 URI")
	flag.StringVar(&o.Key.Public, "public-key", "",
		"for a URI: a `file` with the public key or certificate")
	flag.Parse()
	o.Targets = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := release.Build(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		stop()
		os.Exit(1)
	}
}
