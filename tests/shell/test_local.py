from broker import LocalBroker


def test_local_broker_shows_where_it_is() -> None:
    broker = LocalBroker()
    assert repr(broker) == "<LocalBroker at no endpoint: it is not running>"

    with broker:
        assert repr(broker) == f"<LocalBroker at {broker.endpoint}>"
