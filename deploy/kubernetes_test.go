package deploy_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	network "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

// manifest is deploy/kubernetes.yaml in Kubernetes' own types. A field that they do not have is an error.
type manifest struct {
	config     core.ConfigMap
	claim      core.PersistentVolumeClaim
	deployment apps.Deployment
	service    core.Service
	policy     network.NetworkPolicy
}

func kubernetes(t *testing.T) manifest {
	t.Helper()
	text, err := os.ReadFile("kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var m manifest
	kinds := map[string]any{
		"v1 ConfigMap": &m.config, "v1 PersistentVolumeClaim": &m.claim, "apps/v1 Deployment": &m.deployment,
		"v1 Service": &m.service, "networking.k8s.io/v1 NetworkPolicy": &m.policy,
	}
	for _, document := range bytes.Split(text, []byte("\n---\n")) {
		var kind struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal(document, &kind); err != nil {
			t.Fatal(err)
		}
		name := kind.APIVersion + " " + kind.Kind
		into := kinds[name]
		if into == nil {
			t.Fatalf("the manifest has a second %s, or one that this test does not know", name)
		}
		delete(kinds, name)
		if err := yaml.UnmarshalStrict(document, into); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name := range kinds {
		t.Errorf("the manifest has no %s", name)
	}
	return m
}

func TestKubernetesRunsOneProcessOnTheVolume(t *testing.T) {
	m := kubernetes(t)
	d := m.deployment.Spec
	if d.Replicas == nil || *d.Replicas != 1 || d.Strategy.Type != apps.RecreateDeploymentStrategyType {
		t.Errorf("replicas %v with strategy %q, want 1 with Recreate: a second process on one volume is refused", d.Replicas, d.Strategy.Type)
	}
	pod := d.Template.Spec
	s := pod.SecurityContext
	// The user of the image, which deploy/image compares with the Dockerfile.
	if s.FSGroup == nil || *s.FSGroup != 65532 || *s.RunAsUser != 65532 || !*s.RunAsNonRoot {
		t.Errorf("the pod runs as %+v, want user and group of files 65532", s)
	}
	if got := *pod.TerminationGracePeriodSeconds; got < 45 {
		t.Errorf("the pod has %d s to stop, want SHUTDOWN_GRACE (30 s) and 15 s for the books", got)
	}
	c := pod.Containers[0]
	if len(c.VolumeMounts) != 1 || c.VolumeMounts[0].MountPath != "/data" || c.VolumeMounts[0].Name != pod.Volumes[0].Name {
		t.Errorf("mounts %+v, want the image's DATA_DIR /data", c.VolumeMounts)
	}
	if got := pod.Volumes[0].PersistentVolumeClaim.ClaimName; got != m.claim.Name {
		t.Errorf("the volume is claim %q, want %q", got, m.claim.Name)
	}
	if cs := c.SecurityContext; !*cs.ReadOnlyRootFilesystem || *cs.AllowPrivilegeEscalation || len(cs.Capabilities.Drop) != 1 || cs.Capabilities.Drop[0] != "ALL" {
		t.Errorf("the container has the rights %+v, want only writing to its volume", cs)
	}
	if memory := c.Resources.Limits.Memory(); memory.Value() < 1<<30+150<<20 {
		t.Errorf("the memory limit is %v, want MAX_BODY_MEMORY (1 GiB) and 150 MiB at least", memory)
	}
}

func TestKubernetesProbes(t *testing.T) {
	m := kubernetes(t)
	c := m.deployment.Spec.Template.Spec.Containers[0]
	for name, probe := range map[string]struct {
		got  *core.Probe
		want string
	}{"startup": {c.StartupProbe, "/healthz"}, "readiness": {c.ReadinessProbe, "/readyz"}, "liveness": {c.LivenessProbe, "/healthz"}} {
		if probe.got == nil || probe.got.HTTPGet == nil || probe.got.HTTPGet.Path != probe.want || probe.got.HTTPGet.Port.String() != c.Ports[0].Name {
			t.Errorf("%s probe: got %+v, want GET %s at port %s", name, probe.got, probe.want, c.Ports[0].Name)
		}
	}
	if got, want := m.service.Spec.Selector, m.deployment.Spec.Template.Labels; len(got) != 1 || got["app.kubernetes.io/name"] != want["app.kubernetes.io/name"] {
		t.Errorf("the service selects %v, the pod has %v", got, want)
	}
	from := m.policy.Spec.Ingress[0].From[0].PodSelector.MatchLabels
	if from["app.kubernetes.io/name"] != m.deployment.Spec.Template.Labels["app.kubernetes.io/name"] {
		t.Errorf("the policy lets %v reach Ollama, want only the gateway", from)
	}
}

func TestKubernetesSetsWhatExists(t *testing.T) {
	m := kubernetes(t)
	known := settings(t)
	for name := range m.config.Data {
		if !known[name] {
			t.Errorf("%s is not a setting", name)
		}
		if strings.Contains(name, "KEY") {
			t.Errorf("%s is a secret in a ConfigMap, want a Secret", name)
		}
	}
}
