"""The commands that make, list and revoke keys."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from broker.cli.options import help_if_alone, json_option
from broker.cli.output import write_json
from broker.policy import ROLES, Grant, load
from worker_sdk.keys import KeyPair, new_pair, read_public, write_pair


@click.group(invoke_without_command=True)
@click.pass_context
def keys(context: click.Context) -> None:
    """Make, list and revoke the keys of a broker's clients and workers."""
    help_if_alone(context)


def _policy_option(*, required: bool) -> Callable[[Any], Any]:
    return click.option(
        "--policy",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="POINTSMAN_POLICY",
        required=required,
        metavar="FILE",
        help="The broker's policy (also: POINTSMAN_POLICY).",
    )


def _grant_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say what a key may do."""
    for option in (
        click.option(
            "--type",
            "types",
            multiple=True,
            default=("*",),
            show_default=True,
            metavar="TYPE",
            help="A job type, * for any characters. Repeatable.",
        ),
        click.option(
            "--channel",
            "channels",
            multiple=True,
            default=("default",),
            show_default=True,
            metavar="CHANNEL",
            help="A channel, * for any characters. Repeatable.",
        ),
        click.option(
            "--role",
            "roles",
            multiple=True,
            type=click.Choice(ROLES),
            help="What it may do. Repeatable.",
        ),
    ):
        command = option(command)
    return command


@keys.command()
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=".",
    metavar="FOLDER",
    help="Where to write the key files.  [default: here]",
)
@_grant_options
@_policy_option(required=False)
@json_option
def make(
    name: str,
    folder: Path,
    roles: tuple[str, ...],
    channels: tuple[str, ...],
    types: tuple[str, ...],
    policy: Path | None,
    as_json: bool,
) -> None:
    """Make a key pair: NAME.key, the secret (mode 0600), and NAME.pub, which anybody may see.

    With --role and --policy the key is added to the policy too. A broker's own key needs neither.
    """
    if roles and policy is None:
        raise click.UsageError("--role says what the key may do: --policy has to say where")
    if not roles:
        _refuse_rights_without_role()
    pair = new_pair(name)
    secret, public = write_pair(pair, folder)
    if roles and policy is not None:
        try:
            _add(policy, pair, roles, channels, types)
        except BaseException:
            secret.unlink()
            public.unlink()
            raise
    if as_json:
        files = {"key": str(secret), "public": str(public)}
        write_json({"name": pair.name, "public_key": pair.public, **files})
    else:
        click.echo(f"{secret}  secret: for {pair.name} alone")
        click.echo(f"{public}  public")
        if roles:
            click.echo(f"{policy}  knows it; tell the broker: kill -HUP PID")


def _refuse_rights_without_role() -> None:
    """Raise UsageError for an option that goes with --role alone.

    The environment's POINTSMAN_POLICY is none: it is there for other commands too.
    """
    context = click.get_current_context()
    for parameter, option in (
        ("policy", "--policy"),
        ("channels", "--channel"),
        ("types", "--type"),
    ):
        if context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{option} is for a key that may do something: --role has to say what"
            )


@keys.command()
@click.argument("name")
@click.argument("public_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.pub")
@_grant_options
@_policy_option(required=True)
@json_option
def add(
    name: str,
    public_file: Path,
    roles: tuple[str, ...],
    channels: tuple[str, ...],
    types: tuple[str, ...],
    policy: Path,
    as_json: bool,
) -> None:
    """Add a key to the policy whose owner has made it: its secret need not travel."""
    if not roles:
        raise click.UsageError(f"what may it do? --role, one or more of {', '.join(ROLES)}")
    pair = KeyPair(name, read_public(public_file).public, "")
    _add(policy, pair, roles, channels, types)
    if as_json:
        write_json({"name": name, "public_key": pair.public})
    else:
        click.echo(f"{policy}  knows {name}; tell the broker: kill -HUP PID")


def _add(
    policy: Path,
    pair: KeyPair,
    roles: tuple[str, ...],
    channels: tuple[str, ...],
    types: tuple[str, ...],
) -> None:
    from broker import keyring

    grant = Grant(pair.name, pair.public, roles=roles, channels=channels, types=types)
    keyring.add(policy, grant)


@keys.command("list")
@_policy_option(required=True)
@json_option
def list_keys(policy: Path, as_json: bool) -> None:
    """List the keys of the policy, and what each may do."""
    fields = ("name", "public_key", "roles", "channels", "types", "revoked")
    for grant in load(policy).grants:
        if as_json:
            write_json({field: getattr(grant, field) for field in fields})
            continue
        rights = "revoked" if grant.revoked else ",".join(grant.roles)
        reach = f"channels {','.join(grant.channels)}  types {','.join(grant.types)}"
        click.echo(f"{grant.name:20} {rights:24} {reach}  {grant.public_key}")


@keys.command()
@click.argument("name")
@_policy_option(required=True)
@json_option
def revoke(name: str, policy: Path, as_json: bool) -> None:
    """Revoke a key: from the broker's next SIGHUP on, nothing of it is let in or carried out."""
    from broker import keyring

    grant = keyring.revoke(policy, name)
    if as_json:
        write_json({"name": name, "public_key": grant.public_key, "revoked": True})
    else:
        click.echo(f"{name} is revoked in {policy}; tell the broker: kill -HUP PID")
