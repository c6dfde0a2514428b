package images_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// A kubelet runs the containers of one pod with the Docker engine: with the pod's environment,
// volumes, user and security context, in a network of its own, from which it reaches the API server
// by the name that its certificate has.
type kubelet struct {
	t       *testing.T
	cluster *testenv.Cluster
	pod     *corev1.Pod
	volumes map[string]string // the pod's volumes by name, as directories
}

const (
	apiServerName = "kubernetes.default.svc"
	accountMount  = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// newKubelet has the volumes of the pod ready. The nodes' directories are those of "local"
// PersistentVolumes, by the name of the pod's volume.
func newKubelet(t *testing.T, cluster *testenv.Cluster, pod *corev1.Pod,
	nodes map[string]string) *kubelet {
	t.Helper()
	k := &kubelet{t, cluster, pod, map[string]string{}}
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.ConfigMap != nil:
			k.volumes[v.Name] = k.files(k.configMap(v.ConfigMap.Name), 0o644)
		case v.Secret != nil:
			secret := must.Get(cluster.Client().CoreV1().Secrets(pod.Namespace).Get(t.Context(),
				v.Secret.SecretName, metav1.GetOptions{}))(t)
			k.volumes[v.Name] = k.files(secret.Data, os.FileMode(*v.Secret.DefaultMode))
		case v.PersistentVolumeClaim != nil && nodes[v.Name] != "":
			k.volumes[v.Name] = k.ownedByGroup(nodes[v.Name])
		default:
			t.Fatalf("no directory for the volume %+v", v)
		}
	}
	token := must.Get(cluster.TokenFor(t.Context(), pod))(t)
	k.volumes[accountMount] = k.files(map[string][]byte{"token": []byte(token),
		"ca.crt": cluster.Config().CAData, "namespace": []byte(pod.Namespace)}, 0o644)
	return k
}

func (k *kubelet) configMap(name string) map[string][]byte {
	k.t.Helper()
	object, err := k.cluster.Client().CoreV1().ConfigMaps(k.pod.Namespace).Get(k.t.Context(), name,
		metav1.GetOptions{})
	must.OK(k.t, err)
	data := map[string][]byte{}
	for key, value := range object.Data {
		data[key] = []byte(value)
	}
	return data
}

// files returns a volume with these files, as kubelet makes it: each file is a symbolic link to
// another one in a directory that is replaced at each change.
func (k *kubelet) files(data map[string][]byte, mode os.FileMode) string {
	k.t.Helper()
	dir := k.t.TempDir()
	must.OK(k.t, os.Mkdir(filepath.Join(dir, "..1"), 0o755))
	must.OK(k.t, os.Symlink("..1", filepath.Join(dir, "..data")))
	for name, text := range data {
		file := filepath.Join(dir, "..1", name)
		must.OK(k.t, errors.Join(os.WriteFile(file, text, mode),
			os.Chown(file, -1, int(*k.pod.Spec.SecurityContext.FSGroup)), os.Chmod(file, mode),
			os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name))))
	}
	must.OK(k.t, os.Chmod(dir, 0o777|os.ModeSticky))
	return dir
}

// ownedByGroup gives a directory to the pod's fsGroup, as kubelet does before it mounts a volume.
func (k *kubelet) ownedByGroup(dir string) string {
	k.t.Helper()
	must.OK(k.t, errors.Join(os.Chown(dir, -1, int(*k.pod.Spec.SecurityContext.FSGroup)),
		os.Chmod(dir, 0o770|os.ModeSetgid)))
	return dir
}

// arguments returns those of docker run for a container of the pod.
func (k *kubelet) arguments(c corev1.Container) []string {
	k.t.Helper()
	pod, own := k.pod.Spec.SecurityContext, c.SecurityContext
	if !*pod.RunAsNonRoot || *own.AllowPrivilegeEscalation || !*own.ReadOnlyRootFilesystem ||
		pod.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		k.t.Fatalf("the container %s is not hardened: %+v, %+v", c.Name, pod, own)
	}
	args := []string{"--read-only", "--security-opt=no-new-privileges",
		fmt.Sprintf("--user=%d:%d", *pod.RunAsUser, *pod.RunAsGroup),
		fmt.Sprintf("--group-add=%d", *pod.FSGroup),
		"--add-host=" + apiServerName + ":host-gateway"}
	for _, capability := range own.Capabilities.Drop {
		args = append(args, "--cap-drop="+string(capability))
	}
	if limit := c.Resources.Limits.Memory(); !limit.IsZero() {
		args = append(args, fmt.Sprintf("--memory=%d", limit.Value()))
	}
	for name, value := range k.environment(c) {
		args = append(args, "--env="+name+"="+value)
	}
	mounts := append(slices.Clone(c.VolumeMounts), corev1.VolumeMount{Name: accountMount,
		MountPath: accountMount, ReadOnly: true})
	for _, m := range mounts {
		mount := k.volumes[m.Name] + ":" + m.MountPath
		if m.ReadOnly {
			mount += ":ro"
		}
		args = append(args, "--volume="+mount)
	}
	command := c.Args
	if len(c.Command) > 0 {
		args = append(args, "--entrypoint="+c.Command[0])
		command = slices.Concat(c.Command[1:], c.Args)
	}
	return slices.Concat(args, []string{c.Image}, command)
}

func (k *kubelet) environment(c corev1.Container) map[string]string {
	k.t.Helper()
	_, port, _ := strings.Cut(strings.TrimPrefix(k.cluster.Config().Host, "https://"), ":")
	environment := map[string]string{"KUBERNETES_SERVICE_HOST": apiServerName,
		"KUBERNETES_SERVICE_PORT": port}
	for _, from := range c.EnvFrom {
		for name, value := range k.configMap(from.ConfigMapRef.Name) {
			environment[name] = string(value)
		}
	}
	for _, e := range c.Env {
		environment[e.Name] = e.Value
	}
	return environment
}

// start runs the init containers to their end, and starts the container, which runs until the end
// of the test.
func (k *kubelet) start() (container string) {
	k.t.Helper()
	for _, c := range k.pod.Spec.InitContainers {
		run(k.t, nil, "docker", append([]string{"run", "--rm"}, k.arguments(c)...)...)
	}
	c := k.pod.Spec.Containers[0]
	container = strings.TrimSpace(run(k.t, nil, "docker", append([]string{"run", "--detach"},
		k.arguments(c)...)...))
	k.t.Cleanup(func() {
		ctx := context.WithoutCancel(k.t.Context())
		if k.t.Failed() {
			out, err := try(ctx, nil, "sh", "-c", "docker logs "+container+" 2>&1")
			k.t.Log(out, err)
		}
		_, _ = try(ctx, nil, "docker", "rm", "--force", "--volumes", container)
	})
	return container
}

// probe waits until a probe of the pod's container succeeds.
func (k *kubelet) probe(container string, probe *corev1.Probe) {
	k.t.Helper()
	ports := map[string]int32{}
	for _, p := range k.pod.Spec.Containers[0].Ports {
		ports[p.Name] = p.ContainerPort
	}
	address := strings.TrimSpace(run(k.t, nil, "docker", "inspect", "--format",
		"{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container))
	url := fmt.Sprintf("http://%s:%d%s", address, ports[probe.HTTPGet.Port.StrVal],
		probe.HTTPGet.Path)
	last := errors.New("not tried")
	err := wait.PollUntilContextTimeout(k.t.Context(), 200*time.Millisecond, time.Minute, true,
		func(ctx context.Context) (bool, error) {
			last = get(ctx, url)
			return last == nil, nil
		})
	if err != nil {
		k.t.Fatalf("%s: %v", url, errors.Join(err, last))
	}
}

func get(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	return nil
}
