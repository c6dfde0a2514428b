package testenv_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// cluster is the one that the tests of this package share.
var cluster *testenv.Cluster

func TestMain(m *testing.M) {
	if os.Getenv(orphanVariable) != "" {
		os.Exit(orphan())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	cluster, err = testenv.StartCluster(context.Background(),
		testenv.ClusterOptions{Progress: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer cluster.Stop()
	if err := cluster.AllowRequests(context.Background(), ""); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func TestTokenOfPodNamesThePod(t *testing.T) {
	ctx := t.Context()
	pod, err := cluster.Pod(ctx,
		testenv.PodSpec{Namespace: "calico-system", Name: "calico-typha-0",
			ServiceAccount: "calico-typha", Node: "worker", IPs: []string{"10.0.0.7", "fd00::7"}})
	must.OK(t, err)
	if pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP != "10.0.0.7" ||
		len(pod.Status.PodIPs) != 2 {
		t.Fatalf("pod's status is %+v, want running with both addresses", pod.Status)
	}
	request := ask(t, must.Get(cluster.TokenFor(ctx, pod))(t), pod)
	if got, want := request.Spec.Username,
		"system:serviceaccount:calico-system:calico-typha"; got != want {
		t.Errorf("username is %q, want %q", got, want)
	}
	for key, want := range map[string]string{"pod-name": pod.Name, "pod-uid": string(pod.UID),
		"node-name": "worker"} {
		if got := request.Spec.Extra["authentication.kubernetes.io/"+key]; len(got) != 1 ||
			got[0] != want {
			t.Errorf("extra %s is %v, want %s", key, got, want)
		}
	}
}

func TestUnboundTokenNamesNoPod(t *testing.T) {
	must.OK(t, cluster.EnsureServiceAccount(t.Context(), "calico-system", "intruder"))
	token := must.Get(cluster.UnboundToken(t.Context(), "calico-system", "intruder"))(t)
	pretended := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "calico-typha-1"},
		Status: corev1.PodStatus{PodIP: "10.0.0.9"}}
	for key := range ask(t, token, pretended).Spec.Extra {
		if strings.HasPrefix(key, "authentication.kubernetes.io/pod") ||
			strings.HasPrefix(key, "authentication.kubernetes.io/node") {
			t.Errorf("extra has %s, want none of a pod", key)
		}
	}
}

func TestPodWithoutNetworkIsPending(t *testing.T) {
	pod := must.Get(cluster.Pod(t.Context(),
		testenv.PodSpec{Namespace: "pending", Name: "a", HostNetwork: true}))(t)
	if pod.Status.Phase != corev1.PodPending || pod.Status.PodIP != "" {
		t.Fatalf("pod's status is %+v, want pending without address", pod.Status)
	}
	pod = must.Get(cluster.RunPod(t.Context(), pod, "192.0.2.9"))(t)
	if pod.Status.HostIP != "192.0.2.9" {
		t.Errorf("host IP is %q, want the pod's, which is on its node's network", pod.Status.HostIP)
	}
	must.OK(t, cluster.DeletePod(t.Context(), pod))
	if _, err := cluster.Client().CoreV1().Pods("pending").Get(t.Context(), "a",
		metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after its deletion the pod is still there: %v", err)
	}
}

// A pod that initializes has its IPs before its main container runs.
func TestPodWithInitContainersIsPending(t *testing.T) {
	pod := must.Get(cluster.Pod(t.Context(), testenv.PodSpec{
		Namespace: "pending", Name: "b", IPs: []string{"10.0.0.8"},
		InitContainers: []string{"certs", "more"},
	}))(t)
	status := pod.Status
	if status.Phase != corev1.PodPending || status.PodIP != "10.0.0.8" ||
		len(status.InitContainerStatuses) != 2 || len(status.ContainerStatuses) != 1 {
		t.Fatalf("pod's status is %+v, want pending with an address and three containers", status)
	}
	first, second, main := status.InitContainerStatuses[0], status.InitContainerStatuses[1],
		status.ContainerStatuses[0]
	if first.Name != "certs" || first.State.Running == nil || second.State.Waiting == nil ||
		main.State.Waiting == nil {
		t.Errorf("containers are %+v, %+v and %+v, want the first one alone running", first,
			second, main)
	}
}

func TestApply(t *testing.T) {
	manifests := `
apiVersion: v1
kind: Namespace
metadata: {name: applied}
---
# nothing
---
apiVersion: v1
kind: ConfigMap
metadata: {name: a, namespace: applied}
data: {key: %s}
`
	for _, value := range []string{"first", "second"} {
		must.OK(t, cluster.Apply(t.Context(), fmt.Appendf(nil, manifests, value)))
		got := must.Get(cluster.Client().CoreV1().ConfigMaps("applied").Get(t.Context(), "a",
			metav1.GetOptions{}))(t)
		if got.Data["key"] != value {
			t.Errorf("key is %q, want %q", got.Data["key"], value)
		}
	}
	if err := cluster.Apply(t.Context(),
		[]byte("{apiVersion: v1, kind: Namespace, metadata: {name: b}, typo: 1}")); err == nil {
		t.Error("an unknown field was accepted")
	}
}

func TestFaultsOfTheAPIServer(t *testing.T) {
	must.OK(t, cluster.EnsureNamespace(t.Context(), "survivor"))
	impatient := cluster.Config()
	impatient.Timeout = 500 * time.Millisecond
	client := kubernetes.NewForConfigOrDie(impatient)
	reachable := func() error {
		_, err := client.CoreV1().Namespaces().Get(t.Context(), "survivor", metav1.GetOptions{})
		return err
	}
	steps := []struct {
		name    string
		do      func() error
		reaches bool
	}{
		{"pause", cluster.PauseAPIServer, false},
		{"resume", cluster.ResumeAPIServer, true},
		{"stop", cluster.StopAPIServer, false},
		{"start", func() error { return cluster.StartAPIServer(context.Background()) }, true},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if err := reachable(); (err == nil) != step.reaches {
			t.Errorf("after %s: %v, want reachable %t", step.name, err, step.reaches)
		}
	}
}

func TestSameDirectoryIsSameCluster(t *testing.T) {
	dir := t.TempDir()
	first, err := testenv.StartCluster(t.Context(), testenv.ClusterOptions{Dir: dir, Detach: true})
	must.OK(t, err)
	defer testenv.StopCluster(dir)
	must.OK(t, first.EnsureNamespace(t.Context(), "kept"))
	taken, err := testenv.StartCluster(t.Context(), testenv.ClusterOptions{Dir: dir, Detach: true})
	if err != nil {
		t.Fatalf("taking over what runs: %v", err)
	}
	must.OK(t, testenv.StopCluster(dir))
	if err := taken.EnsureNamespace(t.Context(), "b"); err == nil {
		t.Fatal("the cluster answers after it was put down")
	}
	again := must.Get(testenv.StartCluster(t.Context(), testenv.ClusterOptions{Dir: dir}))(t)
	defer again.Stop()
	if _, err := first.Client().CoreV1().Namespaces().Get(t.Context(), "kept",
		metav1.GetOptions{}); err != nil {
		t.Errorf("the first cluster's client does not find its namespace in the second: %v", err)
	}
	if _, err := testenv.StartCluster(t.Context(), testenv.ClusterOptions{Dir: dir}); err == nil {
		t.Error("a second cluster was started in the directory of one that runs")
	} else if _, err := again.Client().Discovery().ServerVersion(); err != nil {
		t.Errorf("the attempt to start a second cluster harmed the first: %v", err)
	}
}

func TestContextEndsTheCluster(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	short := must.Get(testenv.StartCluster(ctx, testenv.ClusterOptions{}))(t)
	defer short.Stop()
	cancel()
	waitUntilGone(t, short.Dir())
}

func TestKubeconfig(t *testing.T) {
	config := must.Get(clientcmd.BuildConfigFromFlags("", cluster.Kubeconfig()))(t)
	version := must.Get(kubernetes.NewForConfigOrDie(config).Discovery().ServerVersion())(t)
	if version.Minor == "" || version.GitVersion == "v0.0.0" {
		t.Errorf("server's version is %+v, want a real one", version)
	}
}

// orphanVariable makes this test program start a cluster in the directory that it names, and then
// hang, to be killed.
const orphanVariable = "TESTENV_ORPHAN"

func orphan() int {
	if _, err := testenv.StartCluster(context.Background(),
		testenv.ClusterOptions{Dir: os.Getenv(orphanVariable)}); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("started")
	select {}
}

func TestNothingOutlivesItsProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), orphanVariable+"="+dir)
	stdout := must.Get(cmd.StdoutPipe())(t)
	must.OK(t, cmd.Start())
	var line string
	_, err := fmt.Fscanln(stdout, &line)
	if killed := cmd.Process.Kill(); killed != nil {
		t.Fatal(killed)
	}
	_ = cmd.Wait()
	if err != nil || line != "started" {
		t.Fatalf("the other process said %q, %v", line, err)
	}
	waitUntilGone(t, dir)
}

// waitUntilGone waits until no server runs in dir: a new cluster can then start there.
func waitUntilGone(t *testing.T, dir string) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 20*time.Second, true,
		func(context.Context) (bool, error) {
			var fresh *testenv.Cluster
			if fresh, last = testenv.StartCluster(t.Context(),
				testenv.ClusterOptions{Dir: dir}); last != nil {
				return false, nil
			}
			return true, fresh.Stop()
		})
	if err != nil {
		t.Fatalf("servers are left in %s: %v", dir, errors.Join(err, last))
	}
}

func TestSoftHSM(t *testing.T) {
	token := must.Get(testenv.NewSoftHSM(t.Context(), t.TempDir(), "test"))(t)
	slots := func() string {
		cmd := exec.Command("softhsm2-util", "--show-slots")
		cmd.Env = append(os.Environ(), token.Env())
		output, _ := cmd.CombinedOutput() // it fails where there is no token directory
		return string(output)
	}
	has := func() bool { return strings.Contains(slots(), "Label:            test") }
	if !has() {
		t.Fatalf("no token in:\n%s", slots())
	}
	must.OK(t, token.MoveAway())
	if has() {
		t.Errorf("the token is there after it was moved away:\n%s", slots())
	}
	must.OK(t, token.MoveBack())
	if !has() {
		t.Errorf("the token is not back:\n%s", slots())
	}
}

func TestAssetsThatLackABinary(t *testing.T) {
	t.Setenv(testenv.AssetsVariable, t.TempDir())
	_, err := testenv.Binaries(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), testenv.AssetsVariable) {
		t.Errorf("got %v, want an error that names %s", err, testenv.AssetsVariable)
	}
}

// typhaRequest is what Typha asks for in that pod.
func typhaRequest(t *testing.T, pod *corev1.Pod) calico.InitContainer {
	t.Helper()
	return calico.InitContainer{
		Component: calico.OpenSource("cluster.local")[1], Pod: pod,
		SignerName: "example.com/test", Key: calico.NewP256Key(),
		SignatureAlgorithm: "ECDSAWithSHA256",
	}
}

// ask creates a certificate request as whoever has the token, and returns what the API server made
// of it.
func ask(t *testing.T, token string, pod *corev1.Pod) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	client := must.Get(kubernetes.NewForConfig(cluster.ConfigFor(token)))(t)
	return must.Get(typhaRequest(t, pod).Submit(t.Context(), client))(t)
}

// TestRefusalReachesCalico denies a request while its pod waits, and another that takes its place.
func TestRefusalReachesCalico(t *testing.T) {
	pod := must.Get(cluster.Pod(t.Context(),
		testenv.PodSpec{Namespace: "calico-system", Name: "refused", ServiceAccount: "calico-typha",
			IPs: []string{"10.0.0.8"}}))(t)
	token := must.Get(cluster.TokenFor(t.Context(), pod))(t)
	client := kubernetes.NewForConfigOrDie(cluster.ConfigFor(token))
	earlier := ask(t, token, pod)
	later := ask(t, token, pod)
	if earlier.Name != later.Name || earlier.UID == later.UID {
		t.Errorf("the later request is %s (%s), want another of the earlier's name %s (%s)",
			later.Name, later.UID, earlier.Name, earlier.UID)
	}
	var waiting sync.WaitGroup
	waiting.Go(func() {
		_, err := calico.Wait(t.Context(), client, later.Name)
		var refused *calico.Refused
		if !errors.As(err, &refused) || refused.Condition.Reason != "Test" {
			t.Errorf("got %v, want refused for reason Test", err)
		}
	})
	later.Status.Conditions =
		[]certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied,
			Status: corev1.ConditionTrue, Reason: "Test"}}
	if _, err := cluster.Requests().UpdateApproval(t.Context(), later.Name, later,
		metav1.UpdateOptions{}); err != nil {
		t.Error(err)
	}
	waiting.Wait()
}
