"""Language codes as the Hub accepts them in the metadata of a card."""

# ISO 639-3 to ISO 639-1, for the languages that have both.
_PAIRS = """
    aar:aa abk:ab afr:af aka:ak amh:am ara:ar arg:an asm:as ava:av ave:ae aym:ay aze:az bak:ba bam:bm bel:be ben:bn
    bis:bi bod:bo bos:bs bre:br bul:bg cat:ca ces:cs cha:ch che:ce chu:cu chv:cv cor:kw cos:co cre:cr cym:cy dan:da
    deu:de div:dv dzo:dz ell:el eng:en epo:eo est:et eus:eu ewe:ee fao:fo fas:fa fij:fj fin:fi fra:fr fry:fy ful:ff
    gla:gd gle:ga glg:gl glv:gv grn:gn guj:gu hat:ht hau:ha hbs:sh heb:he her:hz hin:hi hmo:ho hrv:hr hun:hu hye:hy
    ibo:ig ido:io iii:ii iku:iu ile:ie ina:ia ind:id ipk:ik isl:is ita:it jav:jv jpn:ja kal:kl kan:kn kas:ks kat:ka
    kau:kr kaz:kk khm:km kik:ki kin:rw kir:ky kom:kv kon:kg kor:ko kua:kj kur:ku lao:lo lat:la lav:lv lim:li lin:ln
    lit:lt ltz:lb lub:lu lug:lg mah:mh mal:ml mar:mr mkd:mk mlg:mg mlt:mt mon:mn mri:mi msa:ms mya:my nau:na nav:nv
    nbl:nr nde:nd ndo:ng nep:ne nld:nl nno:nn nob:nb nor:no nya:ny oci:oc oji:oj ori:or orm:om oss:os pan:pa pli:pi
    pol:pl por:pt pus:ps que:qu roh:rm ron:ro run:rn rus:ru sag:sg san:sa sin:si slk:sk slv:sl sme:se smo:sm sna:sn
    snd:sd som:so sot:st spa:es sqi:sq srd:sc srp:sr ssw:ss sun:su swa:sw swe:sv tah:ty tam:ta tat:tt tel:te tgk:tg
    tgl:tl tha:th tir:ti ton:to tsn:tn tso:ts tuk:tk tur:tr twi:tw uig:ug ukr:uk urd:ur uzb:uz ven:ve vie:vi vol:vo
    wln:wa wol:wo xho:xh yid:yi yor:yo zha:za zho:zh zul:zu
"""
# Languages without a two-letter code: those of ISO 639-2, FLORES-200 and NLLB.
_LONG_ONLY = """
    ace ach acm acq ada ady aeb ain ajp ale als alt anp apc arb arn arp ars arw ary arz ast awa ayr azb azj bal ban bas
    bej bem bho bik bin bjn bla bra bua bug byn cad car ceb chk chm chn cho chp chr chy cjk ckb cmn cnr crh csb dak dar
    del den dgr dik din doi dsb dua dyu efi eka ewo fan fat fil fon frr frs fur fuv gaa gay gaz gba gil gon gor grb gsw
    gwi hai haw hbo hil hmn hne hsb hup iba ilo inh jpr jrb kaa kab kac kam kbd kbp kea kha khk kmb kmr knc kok kos kpe
    krc krl kru kum kut lad lah lam lez lij lmo lol loz ltg lua lun luo lus lvs mad mag mai mak man mas mdf mdr men mic
    min mnc mni moh mos mus mwl mwr myv nap nds new nia niu nog npi nqo nso nus nym nyn nyo nzi ory osa pag pam pap pau
    pbt pes plt pon prs quy quz raj rap rar rom rup sad sah sas sat scn sco sel shn sid sma smj smn sms snk srn srr suk
    sus swh syr szl taq tem ter tet tig tiv tkl tli tmh tog tpi tsi tum tvl tyv tzm udm umb uzn vai vec vot wal war was
    xal yao yap ydd yue zap zen zgh zsm zun zza
"""
_SHORT = dict(pair.split(":") for pair in _PAIRS.split())
_KNOWN = frozenset((*_SHORT.values(), *_LONG_ONLY.split()))


def hub_language(code: str) -> str | None:
    """The ISO 639-1 code of a language, or its ISO 639-3 code if it has no shorter one.

    Script, region and variant are dropped, because the Hub does not take them: `zh-Hant` is `zh`, `eng_Latn` is `en`.

    Args:
        code: Any string that a dataset uses for a language.

    Returns:
        A code that the Hub knows, or None if there is none: better no entry than a wrong one.
    """
    primary = code.strip().replace("_", "-").partition("-")[0].lower()
    return primary if primary in _KNOWN else _SHORT.get(primary)
