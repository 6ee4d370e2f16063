"""`retrieval`: an encoder whose nearest vectors answer a query. `config` needs no torch; the rest does."""

from piton_trainer.recipes.retrieval.config import RetrievalConfig as Config

__all__ = ["Config"]
