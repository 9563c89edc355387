"""Small writers of vendor XML, from the formats' descriptions: they share no code with the readers.

Every document names a patient, staff and a hospital in the elements that exports use for them, all
with the word `NAME`.
"""

import base64
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

NAME = "Zebedee"  # of everybody and everything in these files
PATIENT = "PID-00417"

Leads = Mapping[str, NDArray[np.int16]]
Write = Callable[..., bytes]


def _base64(samples: NDArray[np.int16]) -> str:
    return base64.b64encode(samples.astype("<i2").tobytes()).decode()


def _decimal(samples: NDArray[np.int16], separator: str) -> str:
    return separator.join(str(value) for value in samples.tolist())


def muse(leads: Leads, *, rate: int = 500, checksum: bool = True) -> bytes:
    """GE MUSE: a median beat of zeros, then the rhythm at 4.88 microvolt."""

    def waveform(kind: str, signals: Leads) -> str:
        parts = "".join(
            f"""<LeadData><LeadByteCountTotal>{2 * len(each)}</LeadByteCountTotal>
            <LeadSampleCountTotal>{len(each)}</LeadSampleCountTotal>
            <LeadAmplitudeUnitsPerBit>4.88</LeadAmplitudeUnitsPerBit>
            <LeadAmplitudeUnits>MICROVOLTS</LeadAmplitudeUnits><LeadID>{name}</LeadID>
            <LeadSampleSize>2</LeadSampleSize>
            <LeadDataCRC32>{zlib.crc32(each.astype("<i2").tobytes()) * checksum}</LeadDataCRC32>
            <WaveFormData>{_base64(each)}\n</WaveFormData></LeadData>"""
            for name, each in signals.items()
        )
        return f"""<Waveform><WaveformType>{kind}</WaveformType>
        <SampleBase>{rate}</SampleBase><SampleExponent>0</SampleExponent>
        <HighPassFilter>5</HighPassFilter><LowPassFilter>150</LowPassFilter>
        <ACFilter>NONE</ACFilter>{parts}</Waveform>"""

    median = {name: np.zeros(600, np.int16) for name in leads}
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
    <!DOCTYPE RestingECG SYSTEM "restecg.dtd">
    <RestingECG><PatientDemographics><PatientID>{PATIENT}</PatientID>
    <PatientAge>61</PatientAge><AgeUnits>YEARS</AgeUnits><Gender>FEMALE</Gender>
    <PatientLastName>{NAME}</PatientLastName></PatientDemographics>
    <TestDemographics><Site>7</Site><SiteName>{NAME}</SiteName>
    <AcquisitionDevice>MAC5500 of {NAME}</AcquisitionDevice>
    <AcquisitionTime>10:35:17</AcquisitionTime><AcquisitionDate>02-28-2019</AcquisitionDate>
    <OverreaderLastName>{NAME}</OverreaderLastName></TestDemographics>
    <Order><RequisitionNumber>{NAME}</RequisitionNumber></Order>
    <Diagnosis><DiagnosisStatement><StmtText>{NAME}</StmtText></DiagnosisStatement></Diagnosis>
    {waveform("Median", median)}{waveform("Rhythm", leads)}</RestingECG>""".encode("latin-1")


def aecg(leads: Leads, *, rate: int = 500, code: str = "MDC_ECG_LEAD_") -> bytes:
    """HL7 aECG at 2.5 microvolt, 0 microvolt at 10 ADC units; the representative beat is zeros."""

    def series(kind: str, signals: Leads) -> str:
        parts = "".join(
            f"""<component><sequence><code code="{code}{name.upper()}"/>
            <value xsi:type="SLIST_PQ"><origin value="-0.025" unit="mV"/>
            <scale value="2.5" unit="uV"/><digits>{_decimal(each, " ")}</digits></value>
            </sequence></component>"""
            for name, each in signals.items()
        )
        return f"""<component><series><id root="{NAME}"/><code code="{kind}"/>
        <effectiveTime><low value="20190228103517.000"/></effectiveTime>
        <author><seriesAuthor><manufacturedSeriesDevice>
        <manufacturerModelName>ELI 380 of {NAME}</manufacturerModelName>
        </manufacturedSeriesDevice></seriesAuthor></author>
        <controlVariable><controlVariable><code code="MDC_ECG_CTL_VBL_ATTR_FILTER_HIGH_PASS"/>
        <component><controlVariable><code code="MDC_ECG_CTL_VBL_ATTR_FILTER_CUTOFF_FREQ"/>
        <value value="0.05" unit="Hz"/></controlVariable></component>
        </controlVariable></controlVariable>
        <component><sequenceSet><component><sequence><code code="TIME_RELATIVE"/>
        <value xsi:type="GLIST_PQ"><head value="0" unit="s"/>
        <increment value="{1000 / rate}" unit="ms"/></value></sequence></component>{parts}
        </sequenceSet></component></series></component>"""

    beat = {name: np.zeros(600, np.int16) for name in leads}
    return f"""<!-- of {NAME} --><AnnotatedECG xmlns="urn:hl7-org:v3"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><id root="{NAME}"/>
    <componentOf><timepointEvent><componentOf><subjectAssignment><subject><trialSubject>
    <id root="1.2.3" extension="{PATIENT}"/><subjectDemographicPerson><name>{NAME}</name>
    <administrativeGenderCode code="F"/><birthTime value="19580301"/></subjectDemographicPerson>
    </trialSubject></subject></subjectAssignment></componentOf></timepointEvent></componentOf>
    {series("REPRESENTATIVE_BEAT", beat)}{series("RHYTHM", leads)}</AnnotatedECG>""".encode()


def philips(leads: Leads, *, rate: int = 500, packed: bool = True, blocks: int = 0) -> bytes:
    """Philips Sierra 1.04 in UTF-16 at 5 microvolt; `blocks` of zeros follow the named leads."""
    num_timesteps = len(leads["I"])
    stored = dict(leads)
    if packed and {"I", "II"} <= set(leads):
        one, two = leads["I"].astype(int), leads["II"].astype(int)
        three = leads.get("III", leads["II"] - leads["I"]).astype(int)
        whole = {
            "III": two - one,
            "aVR": -((one + two) // 2),
            "aVL": (one - three) // 2,
            "aVF": (two + three) // 2,
        }
        stored |= {n: (whole[n] - leads[n]).astype(np.int16) for n in whole.keys() & set(leads)}
    signals = [*stored.values(), *[np.zeros(num_timesteps, np.int16)] * blocks]
    content = b"".join(map(_xli_block if packed else _plain_block, signals))
    return f"""<?xml version="1.0" encoding="utf-16"?>
    <restingecgdata xmlns="http://www3.medical.philips.com"><documentinfo>
    <documentname>{NAME}</documentname><documenttype>PhilipsECG</documenttype>
    <documentversion>1.04.02</documentversion></documentinfo>
    <orderinfo><ordernumber>{NAME}</ordernumber></orderinfo>
    <dataacquisition date="2019-02-28" time="10:35:17">
    <machine machineid="{NAME}">PageWriter Touch of {NAME}</machine>
    <acquirer><institutionid>7</institutionid><institutionname>{NAME}</institutionname></acquirer>
    <signalcharacteristics><samplingrate>{rate}</samplingrate><resolution>5</resolution>
    <hipass>0.05</hipass><lowpass>150</lowpass><acsetting>60</acsetting>
    <notchfiltered>True</notchfiltered><signaloffset>0</signaloffset></signalcharacteristics>
    </dataacquisition><patient><generalpatientdata><patientid>{PATIENT}</patientid>
    <name><lastname>{NAME}</lastname></name><age><dateofbirth>1958-02-28</dateofbirth></age>
    <sex>Female</sex></generalpatientdata></patient>
    <interpretations><statement>{NAME}</statement></interpretations>
    <waveforms><parsedwaveforms dataencoding="Base64" numberofleads="{len(leads)}"
    compression="{"XLI" if packed else "Uncompressed"}" leadlabels="{" ".join(leads)}"
    durationperchannel="{1000 * num_timesteps // rate}">{base64.b64encode(content).decode()}
    </parsedwaveforms></waveforms></restingecgdata>""".encode("utf-16")


def _plain_block(samples: NDArray[np.int16]) -> bytes:
    return samples.astype("<i2").tobytes()


def _xli_block(samples: NDArray[np.int16]) -> bytes:
    """Second differences, high bytes before low bytes, LZW codes of 10 bits."""
    values = samples.astype(int).tolist()
    change = [values[n] - 2 * values[n - 1] + values[n - 2] for n in range(2, len(values))]
    stored = [*values[:2], *(64 - each for each in change[1:]), 0]
    words = [each & 0xFFFF for each in stored]
    codes = _lzw(bytes([*(each >> 8 for each in words), *(each & 0xFF for each in words)]))
    bits = "".join(f"{code:010b}" for code in codes)
    packed = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    first = (-change[0] & 0xFFFF).to_bytes(2, "little")
    return len(packed).to_bytes(4, "little") + b"\0\0" + first + packed


def _lzw(content: bytes) -> list[int]:
    table = {bytes([value]): value for value in range(256)}
    codes, word = [], b""
    for value in content:
        longer = word + bytes([value])
        if longer in table:
            word = longer
            continue
        codes.append(table[word])
        if len(table) < 1023:
            table[longer] = len(table)
        word = bytes([value])
    return [*codes, table[word], 1023]


def cardiosoft(leads: Leads, *, rate: int = 500) -> bytes:
    """GE CardioSoft at 5 microvolt, with a full disclosure and median beats of zeros."""
    parts = "".join(
        f'<WaveformData lead="{name}">{_decimal(each, ",")}</WaveformData>'
        for name, each in leads.items()
    )
    zeros = _decimal(np.zeros(600, np.int16), ",")
    median = "".join(f'<WaveformData lead="{name}">{zeros}</WaveformData>' for name in leads)
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?><CardiologyXML>
    <ObservationType>RestECG</ObservationType><ObservationDateTime><Hour>10</Hour>
    <Minute>35</Minute><Second>7</Second><Day>28</Day><Month>2</Month><Year>2019</Year>
    </ObservationDateTime><UID><DICOMStudyUID>{NAME}</DICOMStudyUID></UID>
    <ClinicalInfo><DeviceInfo><Desc>MAC 2000 of {NAME}</Desc></DeviceInfo></ClinicalInfo>
    <PatientInfo><Name><FamilyName>{NAME}</FamilyName></Name><Age units="Years">61</Age>
    <Gender>FEMALE</Gender><PID>{PATIENT}</PID></PatientInfo>
    <FilterSetting><Filter50Hz>Yes</Filter50Hz><Filter60Hz>No</Filter60Hz>
    <LowPass units="Hz">40</LowPass></FilterSetting>
    <RestingECGMeasurements><MedianSamples>{median}</MedianSamples></RestingECGMeasurements>
    <Interpretation><Statement>{NAME}</Statement></Interpretation>
    <StripData><NumberOfLeads>{len(leads)}</NumberOfLeads><SampleRate units="Hz">{rate}</SampleRate>
    <ChannelSampleCountTotal>{len(leads["I"])}</ChannelSampleCountTotal>
    <Resolution units="uVperLsb">5</Resolution>{parts}</StripData>
    <FullDisclosure><FullDisclosureData>{zeros}</FullDisclosureData></FullDisclosure>
    </CardiologyXML>""".encode("latin-1")


def eli(leads: Leads, *, rate: int = 500) -> bytes:
    """Mortara ELI at 400 units a millivolt, with median beats of zeros."""
    zeros = _base64(np.zeros(600, np.int16))
    stored = 'BITS="16" FORMAT="SIGNED" ENCODING="BASE64" UNITS_PER_MV="400"'
    median = "".join(f'<TYPICAL_CYCLE_CHANNEL NAME="{name}" DATA="{zeros}"/>' for name in leads)
    parts = "".join(
        f'<CHANNEL NAME="{name}" {stored} OFFSET="0" SAMPLE_FREQ="{rate}" DURATION="{len(each)}"'
        f' DATA="{_base64(each)}"/>'
        for name, each in leads.items()
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?><!-- Generated by {NAME} -->
    <ECG ACQUISITION_TIME="20190228103517" AGE="61" AGE_UNITS="YEARS">
    <SUBJECT LAST_NAME="{NAME}" ID="{PATIENT}" GENDER="Female" DOB="19580228"/>
    <SOURCE MODEL="ELI 280 of {NAME}" LOW_PASS_FILTER="150"/><SITE NAME="{NAME}"/>
    <AUTOMATIC_INTERPRETATION><STATEMENT TEXT="{NAME}"/></AUTOMATIC_INTERPRETATION>
    <TYPICAL_CYCLE {stored} SAMPLE_FREQ="{rate}">{median}</TYPICAL_CYCLE>{parts}</ECG>""".encode()


def schiller(leads: Leads, *, rate: int = 500) -> bytes:
    """Schiller at 5 microvolt, with median beats of zeros."""

    def wavedata(kind: str, signals: Leads) -> str:
        parts = "".join(
            f"<channel><name>{name}</name><datastype>COMMASEPARATE</datastype>"
            f"<data>{_decimal(each, ',')},</data></channel>"
            for name, each in signals.items()
        )
        return f"""<wavedata><type>{kind}</type><resolution><samplerate>{rate}</samplerate>
        <yres>5</yres></resolution>{parts}</wavedata>"""

    beat = {name: np.zeros(600, np.int16) for name in leads}
    return f"""<?xml version="1.0" encoding="utf-8"?><comXIRIUZsemaXMLSchillerEDISchillerEDI>
    <patdata><id>{PATIENT}</id><lastname>{NAME}</lastname><gender>Female</gender>
    <birthdate>19580228</birthdate></patdata><examdescript><startdatetime><date>20190228</date>
    <time>103517</time></startdatetime><aquiringdevice><hardware><vendor>{NAME}</vendor>
    <model>AT-102 of {NAME}</model></hardware></aquiringdevice></examdescript>
    <eventdata><event>{wavedata("ECG_AVERAGES", beat)}{wavedata("ECG_RHYTHMS", leads)}</event>
    </eventdata></comXIRIUZsemaXMLSchillerEDISchillerEDI>""".encode()
