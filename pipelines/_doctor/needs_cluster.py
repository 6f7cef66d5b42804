"""What the cluster itself has: Kubeflow Pipelines, operators, GPUs."""

import json
import re
from collections.abc import Iterator

from mal.cluster.names import INJECTION_LABEL

from .cluster_view import ClusterView, ForbiddenError, Object, image_version, is_available
from .findings import Finding, Plan, State, absent, missing, ok, unknown, unread

LOWEST_KFP = (2, 16)
LOWEST_TRAINER = (2, 2)
_KFP_VERSION = "2.17.0"
_KFP_MANIFESTS = "github.com/kubeflow/pipelines/manifests/kustomize"
KFP_INSTALL = (
    f'kubectl apply -k "{_KFP_MANIFESTS}/cluster-scoped-resources?ref={_KFP_VERSION}" && '
    "kubectl wait --for condition=established --timeout=60s crd/applications.app.k8s.io && "
    f'kubectl apply -k "{_KFP_MANIFESTS}/env/platform-agnostic?ref={_KFP_VERSION}"'
)
PYTORCHJOB_INSTALL = (
    "kubectl apply --server-side -k "
    '"github.com/kubeflow/trainer.git/manifests/overlays/standalone?ref=v1.9.4"'
)
TRAINER_INSTALL = (
    "kubectl apply --server-side -k "
    '"https://github.com/kubeflow/trainer.git/manifests/overlays/manager?ref=v2.3.0"'
)
KATIB_INSTALL = (
    "kubectl apply -k "
    '"github.com/kubeflow/katib.git/manifests/v1beta1/installs/katib-standalone?ref=v0.19.0"'
)
_ARGO_CONFIG_MAP = "workflow-controller-configmap"
_KUEUE_VERSIONS = ("v1beta2", "v1beta1")


def pipelines_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check that Kubeflow Pipelines runs and is new enough."""
    need = "Kubeflow Pipelines"
    try:
        server = view.deployment("ml-pipeline", (plan.kfp_namespace,))
    except ForbiddenError:
        server = None
        if not plan.pipeline_version:
            yield unknown(
                need,
                f"you may not read deployments in namespace {plan.kfp_namespace}; its API answers "
                "without that right",
                f"mal pipelines doctor --namespace {plan.namespace} --host URL",
            )
            return
    version = plan.pipeline_version or (image_version(server) if server else "")
    if not version and server is None:
        yield missing(need, f"not in namespace {plan.kfp_namespace}", KFP_INSTALL)
    elif version and _number(version) < LOWEST_KFP:
        wanted = ".".join(map(str, LOWEST_KFP))
        yield missing(need, f"{version}; {wanted} or later is needed", KFP_INSTALL)
    elif server is not None and not is_available(server):
        log = f"kubectl -n {plan.kfp_namespace} logs deployment/ml-pipeline"
        yield missing(need, f"{version}, but no pod of ml-pipeline is ready", log)
    else:
        yield ok(need, version or "version unknown: its image has a digest")
        yield from _retries(view, plan)


def _retries(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check that Argo tries a step again whose pod was evicted.

    Kubeflow Pipelines 2.17 sets the default in manifests/kustomize/third-party/argo/base/
    workflow-controller-configmap-patch.yaml; 2.16 does not.
    """
    path = f"/api/v1/namespaces/{plan.kfp_namespace}/configmaps/{_ARGO_CONFIG_MAP}"
    try:
        found = view.read(path)
    except ForbiddenError:
        return
    if found is not None and "retryStrategy" not in json.dumps(found.get("data", {})):
        detail = "Argo has no default retry: a step whose pod is evicted fails its run"
        yield Finding("Retries", State.OPTIONAL, detail, KFP_INSTALL)


def pytorchjob_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check the training operator v1."""
    yield _operator(
        view, plan, "Training operator v1", "pytorchjob",
        served=view.serves("kubeflow.org/v1", "pytorchjobs"),
        deployment="training-operator", namespaces=(plan.kfp_namespace, "kubeflow"),
        install=PYTORCHJOB_INSTALL, purpose="backend=pytorchjob",
    )  # fmt: skip


def trainjob_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check Trainer v2: its definition must have `runtimePatches`, and the runtime of mal."""
    need, group = "Trainer v2", "trainer.kubeflow.org/v1alpha1"
    served = view.serves(group, "trainjobs")
    finding = _operator(
        view, plan, need, "trainjob", served=served,
        deployment="kubeflow-trainer-controller-manager",
        namespaces=("kubeflow-system", plan.kfp_namespace),
        install=TRAINER_INSTALL, purpose="backend=trainjob",
    )  # fmt: skip
    if served and not _has_field(view, group, "runtimePatches"):
        # Trainer 2.0 and 2.1 drop the field silently (facts 9.6).
        lowest = ".".join(map(str, LOWEST_TRAINER))
        detail = f"its TrainJob has no runtimePatches: {lowest} or later is needed"
        yield absent(need, plan, "trainjob", detail, TRAINER_INSTALL)
        return
    yield finding
    if served:
        path = f"/apis/{group}/namespaces/{plan.namespace}/trainingruntimes/mal-torch"
        if view.read(path) is None:
            detail = "no TrainingRuntime mal-torch in the namespace"
            yield absent("Training runtime", plan, "trainjob", detail, plan.apply_with("trainjob"))
        else:
            yield ok("Training runtime", "mal-torch")


def katib_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check Katib, and the label without which it refuses an Experiment."""
    served = view.serves("kubeflow.org/v1beta1", "experiments")
    yield _operator(
        view, plan, "Katib", "katib", served=served, deployment="katib-controller",
        namespaces=(plan.kfp_namespace, "kubeflow"), install=KATIB_INSTALL,
        purpose="tune with backend=katib",
    )  # fmt: skip
    if not served:
        return
    namespace = view.read(f"/api/v1/namespaces/{plan.namespace}") or {}
    label = namespace.get("metadata", {}).get("labels", {}).get(INJECTION_LABEL)
    if label == "enabled":
        yield ok("Katib's label", f"{INJECTION_LABEL}=enabled")
    else:
        fix = f"kubectl label namespace {plan.namespace} {INJECTION_LABEL}=enabled"
        yield absent("Katib's label", plan, "katib", "not on the namespace", fix)


def kueue_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check Kueue, and the queues of the namespace."""
    version = next(
        (v for v in _KUEUE_VERSIONS if view.serves(f"kueue.x-k8s.io/{v}", "localqueues")), ""
    )
    yield _operator(
        view, plan, "Kueue", "kueue", served=bool(version),
        deployment="kueue-controller-manager", namespaces=("kueue-system",),
        install="https://kueue.sigs.k8s.io/docs/installation/",
        purpose="job.placement.queue_name",
    )  # fmt: skip
    if not version:
        return
    path = f"/apis/kueue.x-k8s.io/{version}/namespaces/{plan.namespace}/localqueues"
    queues = [queue["metadata"]["name"] for queue in view.items(path)]
    if queues:
        yield ok("Queues", ", ".join(queues))
    else:
        detail = "no LocalQueue in the namespace"
        yield absent("Queues", plan, "kueue", detail, plan.apply_with("kueue"))


def gpu_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check that nodes offer GPUs of the run's name."""
    need, resource = "GPUs", plan.gpu_resource
    show = "kubectl get nodes -o custom-columns=NODE:.metadata.name,ALLOCATABLE:.status.allocatable"
    try:
        nodes = view.items("/api/v1/nodes")
    except ForbiddenError:
        detail = "you may not list nodes; ask an administrator for"
        yield unread(need, detail, show, is_needed="gpu" in plan.uses)
        return
    counts = [int(node["status"].get("allocatable", {}).get(resource, 0)) for node in nodes]
    if any(counts):
        with_gpus = sum(count > 0 for count in counts)
        yield ok(need, f"{sum(counts)} {resource} on {with_gpus} of {len(nodes)} nodes")
        return
    names = {name for node in nodes for name in node["status"].get("allocatable", {})}
    others = sorted(name for name in names if re.search(r"/(.*gpu|mig-)", name))
    other = f"; they offer {', '.join(others)}: name it by --gpu-resource" if others else ""
    install = "https://docs.nvidia.com/datacenter/cloud-native/gpu-operator/latest/"
    yield absent(need, plan, "gpu", f"no node offers {resource}{other}", install)


def _operator(
    view: ClusterView,
    plan: Plan,
    need: str,
    part: str,
    *,
    served: bool,
    deployment: str,
    namespaces: tuple[str, ...],
    install: str,
    purpose: str,
) -> Finding:
    """Check that a kind of objects is known and that its controller runs."""
    if not served:
        return absent(need, plan, part, f"not installed; for {purpose}", install)
    try:
        controller = view.deployment(deployment, namespaces)
    except ForbiddenError:
        controller = None
    if controller is None:
        return ok(need, "its objects are known; the version cannot be read")
    if not is_available(controller):
        namespace = controller["metadata"]["namespace"]
        show = f"kubectl -n {namespace} describe deployment {deployment}"
        return absent(need, plan, part, f"no pod of {deployment} is ready", show)
    return ok(need, image_version(controller) or "version unknown: its image has a digest")


def _has_field(view: ClusterView, group_version: str, field: str) -> bool:
    """Return whether a definition has a field, by the schema that every user may read."""
    schema: Object | None = view.read(f"/openapi/v3/apis/{group_version}")
    return schema is None or json.dumps(field) in json.dumps(schema)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
