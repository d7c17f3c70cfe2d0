"""What kubectl makes of plain values is what the command line makes of them."""

import json

from builders.kubectl_values import KUBECTL_VALUES
from testcluster.kube import Cluster


def test_kubectl_makes_of_each_value_what_we_make_of_it(cluster: Cluster) -> None:
    rows = "".join(f"  - {text}\n" for text in KUBECTL_VALUES)
    text = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: values}}\nspec:\n{rows}"
    printed = cluster.kubectl("label", "--local", "-f", "-", "-o", "json", "of=ours", text=text).stdout
    found = json.loads(printed)["spec"]
    assert dict(zip(KUBECTL_VALUES, found, strict=True)) == KUBECTL_VALUES
