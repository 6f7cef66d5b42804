from .component import fetch_champion as fetch_champion
