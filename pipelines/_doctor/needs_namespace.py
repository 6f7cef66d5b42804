"""What the namespace of the runs has: accounts and their rights, Secrets, policies, quota."""

import json
from collections.abc import Iterator
from typing import Any

from mal.cluster.names import LAUNCHER_ACCOUNT, TRAINER_ACCOUNT
from mal.storage.kfp_launcher import ARTIFACT_KEYS, LAUNCHER_CONFIG_MAP
from mal.storage.stores import S3_SECRET

from .cluster_view import ClusterView, ForbiddenError, Object, Right
from .findings import Finding, Plan, State, missing, ok, unknown, unread

ENABLED_LABEL = "pipelines.kubeflow.org/enabled"
PROFILE_LABELS = {
    ENABLED_LABEL: "true",
    "app.kubernetes.io/part-of": "kubeflow-profile",
}
PROFILE_CONTROLLER = "kubeflow-pipelines-profile-controller"
_JOB_VERBS = ("create", "get", "list", "watch", "delete", "patch")

# Together every rule of manifests/base/launcher-role.yaml; a test compares them.
JOB_RIGHTS = (
    *(Right(verb, "kubeflow.org", "pytorchjobs") for verb in _JOB_VERBS),
    Right("list", "", "pods"),
    Right("get", "", "pods", "log"),
    Right("list", "", "events"),
)
STEP_RIGHTS = (
    Right("create", "argoproj.io", "workflowtaskresults"),
    Right("patch", "argoproj.io", "workflowtaskresults"),
    Right("get", "", "configmaps", name=LAUNCHER_CONFIG_MAP),
    Right("get", "", "secrets", name=ARTIFACT_KEYS.secret),
)
# By component of manifests/components, with the part of a run that needs it.
COMPONENT_RIGHTS = {
    "trainjob": tuple(Right(verb, "trainer.kubeflow.org", "trainjobs") for verb in _JOB_VERBS),
    "katib": (
        *(Right(verb, "kubeflow.org", "experiments") for verb in _JOB_VERBS),
        Right("list", "kubeflow.org", "trials"),
    ),
    "kueue": (Right("list", "kueue.x-k8s.io", "workloads"),),
}


def namespace_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check the namespace and the labels by which Kubeflow Pipelines admits it."""
    found = view.read(f"/api/v1/namespaces/{plan.namespace}")
    if found is None:
        yield missing("Namespace", f"{plan.namespace} does not exist", _create_namespace(plan))
        return
    if _is_beside_pipelines_alone(view, plan):
        detail = f"Kubeflow Pipelines has no profiles here: it serves {plan.kfp_namespace} alone"
        fix = f"mal pipelines doctor --namespace {plan.kfp_namespace}"
        yield missing("Namespace", detail, fix)
        return
    labels = found["metadata"].get("labels") or {}
    standard = labels.get("pod-security.kubernetes.io/enforce")
    yield ok("Namespace", plan.namespace + (f", pod standard {standard}" if standard else ""))
    if plan.namespace == plan.kfp_namespace:
        return
    lacking = {key: value for key, value in PROFILE_LABELS.items() if labels.get(key) != value}
    if lacking:
        pairs = " ".join(f"{key}={value}" for key, value in lacking.items())
        yield missing(
            "Labels",
            f"Kubeflow Pipelines does not serve the namespace without {', '.join(lacking)}",
            f"kubectl label --overwrite namespace {plan.namespace} {pairs}",
        )
    else:
        yield ok("Labels", "Kubeflow Pipelines serves the namespace")


def _is_beside_pipelines_alone(view: ClusterView, plan: Plan) -> bool:
    """Return whether the namespace is another than that of an installation without profiles.

    Only installs/multi-user of Kubeflow Pipelines has the profile controller
    (manifests/kustomize/installs/multi-user/pipelines-profile-controller of 2.17.0).
    """
    if plan.namespace == plan.kfp_namespace:
        return False
    try:
        server = view.deployment("ml-pipeline", (plan.kfp_namespace,))
        return server is not None and not view.deployment(PROFILE_CONTROLLER, (plan.kfp_namespace,))
    except ForbiddenError:
        return False


def _create_namespace(plan: Plan) -> str:
    if plan.overlay_folder.endswith("/restricted"):
        return plan.apply
    labels = " ".join(f"{key}={value}" for key, value in PROFILE_LABELS.items())
    name = plan.namespace
    return f"kubectl create namespace {name} && kubectl label namespace {name} {labels}"


def account_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check that the accounts of runs and of training pods exist."""
    accounts = (plan.account, TRAINER_ACCOUNT) if plan.makes_jobs else (plan.account,)
    for account in dict.fromkeys(accounts):
        need = f"Account {account}"
        path = f"/api/v1/namespaces/{plan.namespace}/serviceaccounts/{account}"
        if view.read(path) is not None:
            yield ok(need, "exists")
        elif account in (LAUNCHER_ACCOUNT, TRAINER_ACCOUNT):
            yield missing(need, "does not exist", plan.apply)
        else:
            fix = f"kubectl -n {plan.namespace} get serviceaccounts"
            yield missing(need, "does not exist; name one of these by --service-account", fix)


def right_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check the rights of the runs' account."""
    rights = (*STEP_RIGHTS, *JOB_RIGHTS) if plan.makes_jobs else STEP_RIGHTS
    yield _rights(view, plan, "Rights of runs", rights, plan.apply)
    for component, rights in COMPONENT_RIGHTS.items():
        if component in plan.uses:
            fix = plan.apply_with(component)
            yield _rights(view, plan, f"Rights, {component}", rights, fix)


def _rights(
    view: ClusterView, plan: Plan, need: str, rights: tuple[Right, ...], fix: str
) -> Finding:
    try:
        denied = [right for right in rights if not view.may(right, plan.namespace, plan.account)]
    except ForbiddenError:
        account = f"system:serviceaccount:{plan.namespace}:{plan.account}"
        return unknown(
            need,
            f"you may not create localsubjectaccessreviews in {plan.namespace}; an administrator "
            "may ask",
            f"kubectl -n {plan.namespace} auth can-i --list --as {account}",
        )
    if denied:
        return missing(need, f"{plan.account} may not {_listed(denied)}", fix)
    return ok(need, f"{plan.account} may do all that its steps do")


def _listed(rights: list[Right], most: int = 4) -> str:
    shown = ", ".join(map(str, rights[:most]))
    return shown + (f" and {len(rights) - most} more" if len(rights) > most else "")


def secret_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check the Secrets with the keys of the object store."""
    base = f"/api/v1/namespaces/{plan.namespace}"
    for name, keys, is_required in (
        (ARTIFACT_KEYS.secret, (ARTIFACT_KEYS.access_key, ARTIFACT_KEYS.secret_key), True),
        (S3_SECRET, (), False),
    ):
        need = f"Secret {name}"
        try:
            found = view.read(f"{base}/secrets/{name}")
        except ForbiddenError:
            show = f"kubectl -n {plan.namespace} get secret {name}"
            detail = "you may not read Secrets; an administrator may"
            yield unread(need, detail, show, is_needed=is_required)
            continue
        lacking = [key for key in keys if not (found or {}).get("data", {}).get(key)]
        if found is not None and not lacking:
            yield ok(need, "exists")
        elif is_required:
            detail = f"lacks {', '.join(lacking)}" if found else "does not exist"
            yield missing(need, detail, _artifact_secret_fix(view, plan))
        else:
            detail = "not there; for an object store other than Kubeflow's own"
            fix = (
                f"kubectl -n {plan.namespace} create secret generic {name} "
                "--from-literal=MAL_S3_ACCESS_KEY_ID=KEY "
                "--from-literal=MAL_S3_SECRET_ACCESS_KEY=SECRET"
            )
            yield Finding(need, State.OPTIONAL, detail, fix)


def _artifact_secret_fix(view: ClusterView, plan: Plan) -> str:
    """Return the command after which Kubeflow makes the Secret."""
    if plan.namespace == plan.kfp_namespace:
        manifest = "manifests/kustomize/third-party/seaweedfs/base"
        return f'kubectl apply -k "github.com/kubeflow/pipelines/{manifest}?ref=2.17.0"'
    found = view.read(f"/api/v1/namespaces/{plan.namespace}") or {}
    if (found.get("metadata", {}).get("labels") or {}).get(ENABLED_LABEL) != "true":
        return f"kubectl label --overwrite namespace {plan.namespace} {ENABLED_LABEL}=true"
    controller = f"deployment/{PROFILE_CONTROLLER}"
    return f"kubectl -n {plan.kfp_namespace} rollout restart {controller}"


def policy_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check that network policies let training pods and steps reach what they need."""
    need = "Network policies"
    path = f"/apis/networking.k8s.io/v1/namespaces/{plan.namespace}/networkpolicies"
    try:
        policies = {each["metadata"]["name"]: each for each in view.items(path)}
    except ForbiddenError:
        yield unknown(need, "you may not list them", f"kubectl -n {plan.namespace} get netpol")
        return
    if plan.makes_jobs and "mal-trainer-egress" not in policies:
        yield missing(need, "those of training pods are not there", plan.apply)
        return
    if denies_all(policies) and "mal-pipeline-egress" not in policies:
        file = "manifests/overlays/restricted/network-policies.yaml"
        fix = f"kubectl -n {plan.namespace} apply -f {file}"
        yield missing(need, "all traffic is denied, that of steps too", fix)
        return
    yield ok(need, ", ".join(sorted(policies)))
    if view.serves("route.openshift.io/v1", "routes") and 5353 not in _ports(policies.values()):
        detail = "OpenShift's DNS pods listen on port 5353, which no policy allows"
        yield missing("DNS", detail, plan.apply_with("openshift"))
    if denies_all(policies):
        yield from _api_server(view, plan, policies)


def _api_server(view: ClusterView, plan: Plan, policies: dict[str, Object]) -> Iterator[Finding]:
    """Check the way of steps to the API server, which is no pod."""
    need = "Way to the API server"
    if view.serves("cilium.io/v2", "ciliumnetworkpolicies"):
        path = f"/apis/cilium.io/v2/namespaces/{plan.namespace}/ciliumnetworkpolicies"
        try:
            is_open = bool(view.items(path))
        except ForbiddenError:
            is_open = False
        if not is_open:
            detail = "Cilium's ipBlock does not match nodes, and the API server is on one"
            yield missing(need, detail, plan.apply_with("cilium"))
            return
    try:
        found = view.read("/api/v1/namespaces/default/endpoints/kubernetes") or {}
    except ForbiddenError:
        found = {}
    ports = {port["port"] for part in found.get("subsets", ()) for port in part.get("ports", ())}
    of_steps = [each for name, each in policies.items() if name.startswith("mal-pipeline")]
    closed = sorted(ports - _ports(of_steps))
    if closed:
        # A policy of its own: the next apply of the overlay would undo a change of another one.
        policy = json.dumps(_policy_of_port(closed[0]), separators=(",", ":"))
        yield missing(
            need,
            f"it listens on port {closed[0]}, which no policy of the steps allows",
            f"echo '{policy}' | kubectl -n {plan.namespace} apply -f -",
        )
    else:
        yield ok(need, f"port {', '.join(map(str, sorted(ports))) or '443'}")


def _policy_of_port(port: int) -> Object:
    steps = {"matchExpressions": [{"key": "workflows.argoproj.io/workflow", "operator": "Exists"}]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "mal-pipeline-api-server"},
        "spec": {
            "podSelector": steps,
            "policyTypes": ["Egress"],
            "egress": [{"ports": [{"port": port}]}],
        },
    }


def denies_all(policies: dict[str, Object]) -> bool:
    """Return whether a policy denies the egress of every pod."""
    return any(
        not policy["spec"].get("podSelector")
        and "Egress" in policy["spec"].get("policyTypes", ())
        and not policy["spec"].get("egress")
        for policy in policies.values()
    )


def _ports(policies: Any) -> set[int]:
    return {
        port["port"]
        for policy in policies
        for rule in policy["spec"].get("egress") or ()
        for port in rule.get("ports") or ()
        if "port" in port
    }


def storage_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check the cache claim, which needs a class with ReadWriteMany, and the default class."""
    need = "Storage class"
    path = f"/api/v1/namespaces/{plan.namespace}/persistentvolumeclaims"
    claims = {each["metadata"]["name"]: each for each in view.items(path)}
    cache = claims.get("mal-cache")
    if cache is not None and cache.get("status", {}).get("phase") != "Bound":
        show = f"kubectl -n {plan.namespace} describe pvc mal-cache"
        yield missing(need, "claim mal-cache is not bound: is there a class with RWX?", show)
        return
    try:
        classes = view.items("/apis/storage.k8s.io/v1/storageclasses")
    except ForbiddenError:
        classes = []
    names = [each["metadata"]["name"] for each in classes]
    detail = ", ".join(names) or "none known"
    claim = "claim mal-cache is bound" if cache else "no claim is used"
    yield Finding(need, State.OK, f"{claim}; classes: {detail}")


def pull_secret_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check that the pull secrets of the accounts exist."""
    need, base = "Pull secrets", f"/api/v1/namespaces/{plan.namespace}"
    named: dict[str, str] = {}
    for account in (plan.account, TRAINER_ACCOUNT):
        found = view.read(f"{base}/serviceaccounts/{account}") or {}
        named |= {each["name"]: account for each in found.get("imagePullSecrets") or ()}
    for name, account in named.items():
        try:
            is_there = view.read(f"{base}/secrets/{name}") is not None
        except ForbiddenError:
            continue
        if not is_there:
            yield missing(
                need,
                f"account {account} names {name}, which does not exist",
                f"kubectl -n {plan.namespace} create secret docker-registry {name} "
                "--docker-server=HOST --docker-username=USER --docker-password=PASSWORD",
            )
            return
    detail = ", ".join(named) or "none: the registry must serve images without a login"
    yield ok(need, detail)


def quota_need(view: ClusterView, plan: Plan) -> Iterator[Finding]:
    """Check that a quota admits the pods of steps, most of which request nothing."""
    need, base = "Quota", f"/api/v1/namespaces/{plan.namespace}"
    try:
        quotas, limits = view.items(f"{base}/resourcequotas"), view.items(f"{base}/limitranges")
    except ForbiddenError:
        yield unknown(need, "you may not list quotas", f"kubectl -n {plan.namespace} get quota")
        return
    if not quotas:
        yield ok(need, "none")
        return
    limited = {key for quota in quotas for key in quota["spec"].get("hard", {})}
    compute = sorted(key for key in limited if key.rpartition(".")[2] in ("cpu", "memory"))
    if compute and not _has_defaults(limits):
        spec = (
            '{"apiVersion":"v1","kind":"LimitRange","metadata":{"name":"mal-defaults"},"spec":'
            '{"limits":[{"type":"Container","defaultRequest":{"cpu":"100m","memory":"256Mi"},'
            '"default":{"cpu":"2","memory":"4Gi"}}]}}'
        )
        yield missing(
            need,
            f"it counts {', '.join(compute)}: pods that request none, as most steps, are refused",
            f"echo '{spec}' | kubectl -n {plan.namespace} apply -f -",
        )
        return
    yield ok(need, "; ".join(map(_left, quotas)))


def _has_defaults(limits: list[Object]) -> bool:
    return any(
        limit.get("type") == "Container" and limit.get("defaultRequest")
        for each in limits
        for limit in each["spec"].get("limits", ())
    )


def _left(quota: Object) -> str:
    used = quota.get("status", {}).get("used", {})
    hard = quota["spec"].get("hard", {})
    counts = ", ".join(f"{key} {used.get(key, '0')} of {value}" for key, value in hard.items())
    return f"{quota['metadata']['name']}: {counts}"
