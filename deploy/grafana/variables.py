"""The variables at the top of every dashboard, and what they select."""

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableOption, VariableRefresh, VariableSort

DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

# What every query says about its series. `device` is not in it: only kvdepot_build_info has that label,
# and there is one daemon a device, so that it chooses among the instances instead.
TARGETS = 'job=~"$job", instance=~"$instance"'


def _values(name: str, label: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(DATA_SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def variables() -> list:
    return [
        build.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _values("job", "Job", "label_values(kvdepot_build_info, job)"),
        _values("device", "Device", 'label_values(kvdepot_build_info{job=~"$job"}, device)'),
        _values("instance", "Instance", 'label_values(kvdepot_build_info{job=~"$job", device=~"$device"}, instance)'),
    ]
